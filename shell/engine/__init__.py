"""The embedded engine: a server on this machine that speaks the Tinker protocol.

Import `shell.engine.serve` to run one; that is where JAX and the model are loaded.
"""
