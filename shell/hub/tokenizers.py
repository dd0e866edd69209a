"""A model's own tokenizer, from its directory."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from cookbook_fx.catalog import without_suffix
from cookbook_fx.errors import ConfigurationError, ModelError
from cookbook_fx.names import added, imported, is_place
from cookbook_fx.tokens import Tokenizer
from shell.hub.models import Say, resolve_model, say_on_standard_error

# transformers announces on import that it found no torch, which is as intended here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from transformers import PreTrainedTokenizerFast

TokenizerFactory = Callable[[], Tokenizer]
NO_TOKENIZERS: Mapping[str, TokenizerFactory] = MappingProxyType({})


def get_tokenizer(
    model: str,
    *,
    tokenizers: Mapping[str, TokenizerFactory] = NO_TOKENIZERS,
    say: Say = say_on_standard_error,
) -> Tokenizer:
    """A model's tokenizer by the model's name; its weights are not fetched.

    Looked for in this order: one's own `tokenizers`; a directory of this name; a function at
    `package.module:factory`; a model `resolve_model` finds, by the name without its `:suffix`.

    Only tokenizer.json is read, and no code that a model brings is ever run; a model that needs
    such code needs a factory of one's own. Gated models are not replaced by others' copies: accept
    their terms on the hub, or name such a copy yourself.

    Args:
        model: its name, its directory, or where a function is that makes the tokenizer.
        tokenizers: one's own, by model; `register_tokenizer` adds to them.
        say: told of what takes time.

    Raises:
        ConfigurationError: there is no such function, or it makes something else.
        ModelError: there is no such model, it cannot be fetched, or has no usable tokenizer.json.
    """
    if model in tokenizers:
        return _made(tokenizers[model], model)
    if Path(model).expanduser().is_dir():
        return load_tokenizer(Path(model).expanduser())
    if is_place(model):
        return _made(imported(model, what="a tokenizer"), model)
    source = resolve_model(without_suffix(model), say=say, with_weights=False)
    return load_tokenizer(source.directory)


def register_tokenizer(
    tokenizers: Mapping[str, TokenizerFactory], model: str, factory: TokenizerFactory
) -> dict[str, TokenizerFactory]:
    """The tokenizers with one more, to be given to `get_tokenizer`; `NO_TOKENIZERS` begins.

    Nothing is changed for anyone else: what is registered is in the result alone. For a name that
    all processes know, use `package.module:factory`.

    Raises:
        ConfigurationError: the name is taken, empty or has a colon.
    """
    return added(tokenizers, model, factory, what="a tokenizer")


def _made(factory: TokenizerFactory, name: str) -> Tokenizer:
    tokenizer = factory()
    # What is imported by name may be anything.
    if not isinstance(tokenizer, Tokenizer):
        raise ConfigurationError(
            f"{name!r} should make a fast tokenizer, and makes a {type(tokenizer).__name__}"
        )
    return tokenizer


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
