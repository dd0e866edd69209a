"""A model's own tokenizer, from its directory."""

import json
import os
from pathlib import Path

from cookbook_fx.errors import ModelError
from shell.hub.models import resolve_model

# transformers announces on import that it found no torch, which is as intended here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from transformers import PreTrainedTokenizerFast


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer in a model's tokenizer.json, with its special tokens and chat template.

    Args:
        model: a directory, with or without weights, or anything else `resolve_model` takes.

    Raises:
        ModelError: the directory has no tokenizer.json or one that cannot be read.
    """
    directory = Path(model)
    if not directory.is_dir():
        directory = resolve_model(str(model)).directory
    if not (directory / "tokenizer.json").exists():
        raise ModelError(f"{directory} has no tokenizer.json; only fast tokenizers are supported")
    # Intentional: not AutoTokenizer, which for some class names rebuilds another pre-tokenizer
    # than the file's.
    try:
        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    # What transformers and tokenizers raise on a damaged file has no common ancestor but this.
    except Exception as error:
        raise ModelError(
            f"the tokenizer in {directory} cannot be read ({type(error).__name__}: {error}); "
            "tokenizer.json or a file beside it is torn: download the model again"
        ) from error


def end_tokens(directory: Path) -> tuple[int, ...]:
    """The ids that end a text: those of generation_config.json, else the tokenizer's one.

    Raises:
        ModelError: a file is damaged.
    """
    tokenizer_end = load_tokenizer(directory).eos_token_id
    path = directory / "generation_config.json"
    try:
        ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except FileNotFoundError:
        ends = None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ModelError(f"{path} is torn or not a JSON object: {error}") from error
    if ends is None:
        return () if tokenizer_end is None else (tokenizer_end,)
    return tuple(ends) if isinstance(ends, list) else (ends,)
