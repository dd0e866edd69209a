"""Renderers here, their tokenizer alone, and tinker-cookbook's renderers, on the same text.

    python -m benchmarks.renderers [llama3 qwen3 ...] [--conversations 1000] [--repeats 3]

The conversations have five messages: English from Python's manual, and code from its standard
library. Every figure is the processor's time, the best of the repeats; all run in one process and
take turns. The tokenizer alone encodes each conversation written out as one text, and decodes each
response. Responses are streamed a token at a time. A ratio above 1 means that the renderer takes
less time than what it is compared with. Needs npm for the tokenizers, and to compare with
tinker-cookbook, that package with torch and transformers in the same Python.
"""

import argparse
import asyncio.base_events
import importlib.util
import inspect
import itertools
import pydoc_data.topics
import subprocess
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.timing import Timing, in_turns
from cookbook_fx.chat import Conversation, Message, TextPart, ThinkingPart
from cookbook_fx.renderers import (
    Renderer,
    TrainOnWhat,
    build_supervised_batch,
    get_renderer,
)
from tests.family_tokenizers import family_of, real_tokenizer

_RENDERERS = (
    "role_colon", "llama3", "qwen3", "qwen3_disable_thinking", "qwen3_instruct", "deepseekv3",
    "deepseekv3_thinking", "gpt_oss_medium_reasoning",
)  # fmt: skip
_REASONING = ("qwen3", "deepseekv3_thinking", "gpt_oss_medium_reasoning")
_PEERS_NAMES = {"qwen3_keep_thinking": "qwen3"}
_LAST, _ALL = TrainOnWhat.LAST_ASSISTANT_MESSAGE, TrainOnWhat.ALL_ASSISTANT_MESSAGES
_IMPORT_RUNS = 5


def main() -> None:
    arguments = _arguments()
    peer = _peer()
    print(f"import of cookbook_fx.renderers: {_import_seconds():.2f} s of the processor's")
    print(_HEADER)
    for name in arguments.renderers:
        _measure(name, arguments.conversations, arguments.repeats, peer)
    if peer is None:
        print("tinker-cookbook is not installed here, so nothing is compared with it")


class _Case(NamedTuple):
    """What is measured, and what it is compared with.

    Args:
        does: what the renderer does, and how many times it does it.
        bare: what the tokenizer alone does.
        peer: what tinker-cookbook does, where it can.
    """

    name: str
    count: int
    does: Callable[[], object]
    bare: Callable[[], object]
    peer: Callable[[], object] | None


_HEADER = (
    f"{'renderer':24} {'':18} | {'ours':>8} {'bare':>8} {'peer':>8} a second |"
    f" {'bare/ours':>9} {'peer/ours':>9}"
)


def _measure(name: str, count: int, repeats: int, peer: Any) -> None:
    for case in _cases(name, count, peer):
        runs = [case.does, case.bare, *([case.peer] if case.peer else [])]
        ours, bare, *theirs = map(_best, in_turns(runs, repeats=repeats))
        speeds = [f"{case.count / seconds:8.0f}" for seconds in (ours, bare, *theirs)]
        ratios = [f"{seconds / ours:9.2f}" for seconds in (bare, *theirs)]
        missing = [] if theirs else ["-"]
        print(
            f"{name:24} {case.name:18} | {' '.join(speeds + missing):26}          |"
            f" {' '.join(ratios + missing)}",
            flush=True,
        )


def _best(timings: Sequence[Timing]) -> float:
    return min(timing.processor for timing in timings)


def _cases(name: str, count: int, peer: Any) -> Iterator[_Case]:
    tokenizer = real_tokenizer(family_of(name) or "qwen3")
    renderer, bare = get_renderer(name, tokenizer), tokenizer.backend_tokenizer
    conversations = _conversations(count, reasons=name in _REASONING)
    prompts = [conversation[:-1] for conversation in conversations]
    examples = [renderer.build_supervised_example(messages) for messages in conversations]
    texts = [tokenizer.decode(example.tokens) for example in examples]
    prompt_texts = [tokenizer.decode(renderer.build_generation_prompt(p)) for p in prompts]
    responses = [example.tokens[example.weights == 1].tolist() for example in examples]
    theirs = _Peer.of(peer, name, tokenizer, conversations) if peer else None

    def encodes(texts: Sequence[str]) -> Callable[[], object]:
        return lambda: [bare.encode(text, add_special_tokens=False).ids for text in texts]

    def supervised(option: TrainOnWhat) -> Callable[[], object]:
        return lambda: [renderer.build_supervised_example(m, option) for m in conversations]

    for option in (_LAST, _ALL):
        # Its default mode is the bar for every one of ours.
        yield _Case(
            option.value.removesuffix("_messages").removesuffix("_message"), count,
            supervised(option), encodes(texts), theirs and theirs.supervised,
        )  # fmt: skip
    yield _Case(
        "batch", count, lambda: build_supervised_batch(renderer, conversations),
        lambda: [e.ids for e in bare.encode_batch(texts, add_special_tokens=False)],
        theirs and theirs.supervised,
    )  # fmt: skip
    yield _Case(
        "prompt", count, lambda: [renderer.build_generation_prompt(p) for p in prompts],
        encodes(prompt_texts), theirs and theirs.prompt,
    )  # fmt: skip

    def decode() -> object:
        return [bare.decode(tokens, skip_special_tokens=False) for tokens in responses]

    yield _Case(
        "parse", count, lambda: [renderer.parse_response(tokens) for tokens in responses], decode,
        theirs and theirs.parses(responses),
    )  # fmt: skip
    yield _Case(
        "streaming parse", count, lambda: [_streamed(renderer, tokens) for tokens in responses],
        decode, theirs and theirs.streams(responses),
    )  # fmt: skip


def _streamed(renderer: Renderer, tokens: Sequence[int]) -> object:
    parser = renderer.streaming_parser()
    state = parser.init()
    for token in tokens:
        state = parser.update(state, (token,))
    return parser.finish(state)


class _Peer(NamedTuple):
    """What tinker-cookbook does with the same conversations."""

    supervised: Callable[[], object]
    prompt: Callable[[], object]
    renderer: Any

    @staticmethod
    def of(
        peer: Any, name: str, tokenizer: Any, conversations: Sequence[Conversation]
    ) -> "_Peer | None":
        try:
            renderer = peer.get_renderer(_PEERS_NAMES.get(name, name), tokenizer)
        except ValueError:
            return None
        messages = [[_as_peers(m) for m in conversation] for conversation in conversations]
        return _Peer(
            lambda: [renderer.build_supervised_example(m) for m in messages],
            lambda: [renderer.build_generation_prompt(m[:-1]) for m in messages],
            renderer,
        )

    def parses(self, responses: Sequence[list[int]]) -> Callable[[], object]:
        return lambda: [self.renderer.parse_response(tokens) for tokens in responses]

    def streams(self, responses: Sequence[list[int]]) -> Callable[[], object] | None:
        if not self.renderer.supports_streaming:
            return None
        return lambda: [
            list(self.renderer.parse_response_streaming(tokens)) for tokens in responses
        ]


def _as_peers(message: Message) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": message.role, "content": message.content}
    parts = [
        {"type": "thinking", "thinking": part.thinking}
        if isinstance(part, ThinkingPart)
        else {"type": "text", "text": part.text}
        for part in message.content
        if isinstance(part, TextPart | ThinkingPart)
    ]
    return {"role": message.role, "content": parts}


def _peer() -> Any:
    if importlib.util.find_spec("tinker_cookbook") is None:
        return None
    from tinker_cookbook import renderers

    return renderers


def _conversations(count: int, *, reasons: bool) -> list[Conversation]:
    """As many conversations, 500 to 800 tokens each, all different; the last response reasons."""
    prose, code = itertools.cycle(_prose()), itertools.cycle(_code())
    return [
        (
            Message(role="system", content=f"You know Python well. {next(prose)[:150]}"),
            Message(role="user", content=f"{next(prose)}\n\n```python\n{next(code)}\n```"),
            Message(role="assistant", content=f"{next(prose)}\n\n```python\n{next(code)}\n```"),
            Message(role="user", content=f"{next(prose)} Why?"),
            Message(role="assistant", content=_answer(next(prose), next(code), reasons=reasons)),
        )
        for _ in range(count)
    ]


def _answer(prose: str, code: str, *, reasons: bool) -> str | tuple[TextPart | ThinkingPart, ...]:
    answer = f"{prose}\n\n```python\n{code}\n```"
    if not reasons:
        return answer
    return (ThinkingPart(thinking=prose[: len(prose) // 2]), TextPart(text=answer))


def _prose() -> list[str]:
    """The manual in pieces of a few sentences."""
    manual = " ".join(" ".join(pydoc_data.topics.topics.values()).split())
    return textwrap.wrap(manual, 480)


def _code() -> list[str]:
    """Library code in pieces of a dozen lines."""
    modules = (argparse, asyncio.base_events, inspect, subprocess, textwrap, typing)
    lines = [line for module in modules for line in inspect.getsource(module).splitlines()]
    filled = [line for line in lines if line.strip()]
    return ["\n".join(filled[at : at + 9]) for at in range(0, len(filled), 9)]


def _import_seconds() -> float:
    """Of the best of a few fresh processes, less what Python and NumPy take to start."""
    program = "import numpy, time; b = time.process_time(); {}; print(time.process_time() - b)"
    command = [sys.executable, "-c", program.format("import cookbook_fx.renderers")]
    return min(
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(_IMPORT_RUNS)
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("renderers", nargs="*", default=_RENDERERS)
    parser.add_argument("--conversations", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
