"""The functional core: immutable data, pure functions, jitted numerics. Import its rooms."""
