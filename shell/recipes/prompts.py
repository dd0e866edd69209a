"""Prompts of a run: read, some of them held out, told apart from others by what they are."""

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from shell.hub import load_prompts
from shell.recipes.chat_sft import split_off

STARTER = "starter"


class PromptSplit(NamedTuple):
    """Prompts to train on, and others to test on; there may be none of these."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def read_prompts(source: str, *, test: str | None, num_test: int, seed: int) -> PromptSplit:
    """Reads prompts to train and to test on.

    Args:
        source: what `load_prompts` reads, or starter: the questions of the starter conversations.
        test: such a source to test on; None holds some of `source` out by chance, and of the
            starter set takes those that are there for it.
        num_test: prompts to test on at most.
        seed: decides which are held out.

    Raises:
        DataError: prompts cannot be read.
        ConfigurationError: more are to be held out than there are.
    """
    train = _read(source, "train.jsonl")
    if not num_test:
        return PromptSplit(train, ())
    if test is not None or source == STARTER:
        return PromptSplit(train, _read(test or STARTER, "heldout.jsonl")[:num_test])
    return PromptSplit(*split_off(train, num_test, seed=seed))


def prompts_digest(prompts: Sequence[Sequence[str]]) -> str:
    """SHA-256 of prompts, by which a run knows them wherever they are read from.

    Example:
        >>> prompts_digest([["a"], ["b"]]) == prompts_digest([["a", "b"]])
        False
    """
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _read(source: str, starter_file: str) -> tuple[str, ...]:
    if source == STARTER:
        source = str(Path(str(resources.files("shell.recipes") / "starter")) / starter_file)
    return load_prompts(source)
