"""Tokenizers for the rooms that work with tokens."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model_directory: Path):
    """Byte-level, 300 tokens, with SmolLM2's control tokens and template."""
    return AutoTokenizer.from_pretrained(tiny_model_directory)


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_directory: Path):
    """The real one."""
    return AutoTokenizer.from_pretrained(smollm2_directory)
