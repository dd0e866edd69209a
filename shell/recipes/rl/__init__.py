"""Tasks to learn by reinforcement. This file loads nothing, so that `--help` is quick."""
