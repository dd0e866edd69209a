"""Every name of ours that the README mentions is there under that name."""

import importlib
import pkgutil
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
NAME = re.compile(r"`((?:cookbook_fx|shell)(?:\.\w+)+)`")
# Those whose module wants an extra.
OPTIONAL = {"shell.evaluation.inspect_tasks"}


def test_names_can_be_imported() -> None:
    names = set(NAME.findall(README.read_text())) - OPTIONAL
    for name in sorted(names):
        pkgutil.resolve_name(name)


def test_what_is_said_to_keep_its_name_does() -> None:
    for row in README.read_text().splitlines():
        if "(same names)" not in row:
            continue
        _, theirs, ours, *_ = row.split("|")
        room = importlib.import_module(NAME.findall(ours)[0].rpartition(".")[0])
        for name in re.findall(r"`(?:\w+\.)*(\w+)`", theirs):
            assert hasattr(room, name), f"{room.__name__} has no {name}"
