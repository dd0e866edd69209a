"""Where the library keeps what it downloads, converts and compiles."""

import os
from pathlib import Path


def home() -> Path:
    """The one folder for caches and engine state; may not exist yet.

    `COOKBOOK_FX_HOME`, or `~/.cookbook-fx` if that is unset or empty. It holds `models/`
    (downloaded or converted), `downloads/` (what a model or data set is made from),
    `checkpoints/` (the embedded engine's state) and `compiled/` (JAX's compilation cache).
    """
    return Path(os.environ.get("COOKBOOK_FX_HOME") or "~/.cookbook-fx").expanduser().resolve()
