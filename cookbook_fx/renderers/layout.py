"""From a family's headers and outputs to sequences and weights: the part all formats share."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import chain
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from cookbook_fx.chat import ROLES, ImagePart, Message, check_unicode
from cookbook_fx.errors import ConfigurationError, CookbookError, DataError
from cookbook_fx.renderers.renderer import (
    ParsedResponse,
    ParseTermination,
    Renderer,
    SupervisedExample,
    TrainOnWhat,
)
from cookbook_fx.renderers.streaming import Stages, StreamingParser, text_alone
from cookbook_fx.tokens import StopSequences, TextCodec

_LAST_RESPONSE = (TrainOnWhat.LAST_ASSISTANT_MESSAGE, TrainOnWhat.LAST_ASSISTANT_TURN)


class Piece(NamedTuple):
    """One message in tokens: `header + output + trailer`.

    `output` is what the speaker says, its end token included; the rest is written by whoever
    keeps the conversation, and trained on only with ALL_TOKENS. The first `supplied` tokens of
    the output stand in the generation prompt already, such as an opening `<think>`; the options
    that train on the last response leave them out. Where no prompt leads to the output,
    `unproducible` says why and what to do, and those options refuse it.
    """

    message: Message
    header: Sequence[int]
    output: Sequence[int]
    trailer: Sequence[int] = ()
    supplied: int = 0
    unproducible: str | None = None

    @property
    def length(self) -> int:
        return len(self.header) + len(self.output) + len(self.trailer)


@runtime_checkable
class Layout(Protocol):
    """What one chat format says about itself; everything else follows."""

    @property
    def name(self) -> str: ...

    @property
    def codec(self) -> TextCodec: ...

    @property
    def start(self) -> Sequence[int]:
        """What every sequence begins with; never trained on."""

    @property
    def stop_sequences(self) -> StopSequences: ...

    @property
    def has_extension_property(self) -> bool: ...

    def extends(self, messages: Sequence[Message]) -> bool:
        """Whether in this conversation each prompt and its response begin the next prompt."""

    def pieces(self, messages: Sequence[Message], *, is_complete: bool) -> list[Piece]:
        """The messages in tokens, with those the format adds of itself.

        `is_complete` tells a conversation to train on from one that will go on.
        """

    def generation_header(self, role: str, messages: Sequence[Message]) -> Sequence[int]:
        """What a generation prompt ends with after these messages: whose turn it is to speak."""

    def parse(self, tokens: list[int]) -> ParsedResponse: ...


def _nothing(role: str, prefill: Sequence[int]) -> Sequence[int]:
    return ()


def _itself(layout: Layout) -> Layout:
    return layout


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutRenderer:
    """The `Renderer` of a `Layout`.

    Args:
        before_prefill: what stands between a role's header and a prefill of these tokens, in
            formats whose header alone lets nobody speak yet.
        stages: says what responses are made of, as they arrive. A function, as it is of functions,
            so that the renderer can be sent to another process.
        remembering: makes the layout that is asked for one conversation and its beginnings, for
            formats that find out about them what is worth remembering.
    """

    layout: Layout
    before_prefill: Callable[[str, Sequence[int]], Sequence[int]] = _nothing
    stages: Callable[[], Stages] = text_alone
    remembering: Callable[[Layout], Layout] = _itself

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def has_extension_property(self) -> bool:
        return self.layout.has_extension_property

    def build_supervised_example(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> SupervisedExample:
        _check_messages(messages, train_on_what)
        pieces = self.layout.pieces(messages, is_complete=True)
        tokens = _concatenated(self.layout.start, pieces)
        weights = _weights(len(self.layout.start), pieces, train_on_what)
        return SupervisedExample(tokens, weights)

    def build_supervised_examples(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> tuple[SupervisedExample, ...]:
        _check_messages(messages, train_on_what)
        produced = _trained(messages, train_on_what)
        one_by_one = replace(self, layout=self.remembering(self.layout))
        if one_by_one.layout.extends(messages) or not any(produced):
            return (one_by_one.build_supervised_example(messages, train_on_what),)
        if any(trained and messages[i].role != "assistant" for i, trained in enumerate(produced)):
            raise ConfigurationError(
                f"{self.name} writes this conversation's responses otherwise once it goes on, so "
                f"each needs its own example, and {train_on_what} trains on more than responses; "
                "choose an option that trains on assistant messages alone"
            )
        unmarked = [replace(message, trainable=None) for message in messages]
        return tuple(
            one_by_one.build_supervised_example(unmarked[: i + 1])
            for i, trained in enumerate(produced)
            if trained
        )

    def encoded_ahead(
        self,
        conversations: Sequence[Sequence[Message]],
        train_on_what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> Renderer:
        texts: list[str] = []

        def noted(text: str) -> list[int]:
            texts.append(text)
            return []

        noting = replace(self, layout=_with_codecs(_ahead(noted), self.layout))
        if noting.layout is self.layout:
            return self
        for messages in conversations:
            with suppress(CookbookError):
                noting.build_supervised_examples(messages, train_on_what)
        ids = self.layout.codec.encode_batch(texts)
        return replace(self, layout=_with_codecs(_ahead(ids.get), self.layout))

    def trusting_content(self) -> Renderer:
        layout = _with_codecs(TextCodec.trusting, self.layout)
        if layout is self.layout:
            raise ConfigurationError(
                f"{self.name} has no way to trust content; choose a renderer of the model's family"
            )
        return replace(self, layout=layout)

    def build_generation_prompt(
        self, messages: Sequence[Message], role: str = "assistant", prefill: str | None = None
    ) -> Int[np.ndarray, " token"]:
        if role not in ROLES:
            raise ConfigurationError(f"`role` must be one of {', '.join(ROLES)}; got {role!r}")
        pieces = self.layout.pieces(messages, is_complete=False)
        header = self.layout.generation_header(role, messages)
        check_unicode(prefill or "", "the prefill")
        opening = self.layout.codec.encode_trusted(prefill) if prefill else []
        if opening:
            opening = [*self.before_prefill(role, opening), *opening]
        return _concatenated(self.layout.start, pieces, [*header, *opening])

    def get_stop_sequences(self) -> StopSequences:
        return self.layout.stop_sequences

    def parse_response(self, tokens: Sequence[int] | Int[np.ndarray, " token"]) -> ParsedResponse:
        return self.layout.parse(
            tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)
        )

    def streaming_parser(
        self, prompt: Sequence[int] | Int[np.ndarray, " token"] | None = None
    ) -> StreamingParser:
        return StreamingParser(
            parse=self.layout.parse,
            codec=self.layout.codec,
            stops=self.layout.stop_sequences,
            stages=self.stages(),
            prompt=prompt.tolist() if isinstance(prompt, np.ndarray) else prompt,
        )


def _ahead(lookup: Callable[[str], list[int] | None]) -> Callable[[TextCodec], TextCodec]:
    return lambda codec: codec.encoding_by(lookup)


def _with_codecs(change: Callable[[TextCodec], TextCodec], layout: Layout) -> Layout:
    """The layout with all of its own codecs changed; itself if it has none."""
    if not is_dataclass(layout) or isinstance(layout, type):
        return layout
    held = {field.name: getattr(layout, field.name) for field in fields(layout)}
    codecs = {name: change(value) for name, value in held.items() if isinstance(value, TextCodec)}
    return replace(layout, **codecs) if codecs else layout


def _check_messages(messages: Sequence[Message], train_on_what: TrainOnWhat) -> None:
    if not messages:
        raise DataError("a supervised example needs at least one message, got none")
    is_customized = train_on_what == TrainOnWhat.CUSTOMIZED
    for index, message in enumerate(messages):
        if is_customized and message.trainable is None:
            raise ConfigurationError(
                f"message {index} does not say whether it is `trainable`, and with customized "
                "every message must; set it to true or false"
            )
        if not is_customized and message.trainable is not None:
            raise ConfigurationError(
                f"message {index} says `trainable`, which only customized reads; remove it or "
                f"train on customized instead of {train_on_what}"
            )


def _trained(messages: Sequence[Message], train_on_what: TrainOnWhat) -> list[bool]:
    """Which messages' outputs count."""
    final = len(messages) - 1
    match train_on_what:
        case TrainOnWhat.LAST_ASSISTANT_MESSAGE:
            return [i == final and m.role == "assistant" for i, m in enumerate(messages)]
        case TrainOnWhat.LAST_ASSISTANT_TURN:
            users = (i for i, m in enumerate(messages[:final]) if m.role == "user")
            last_user = max(users, default=-1)
            return [i > last_user and m.role == "assistant" for i, m in enumerate(messages)]
        case TrainOnWhat.ALL_ASSISTANT_MESSAGES:
            return [message.role == "assistant" for message in messages]
        case TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES:
            return [message.role in ("user", "system") for message in messages]
        case TrainOnWhat.CUSTOMIZED:
            return [message.trainable is True for message in messages]
        case TrainOnWhat.ALL_MESSAGES | TrainOnWhat.ALL_TOKENS:
            return [True] * len(messages)


def _concatenated(
    start: Sequence[int], pieces: Sequence[Piece], end: Sequence[int] = ()
) -> Int[np.ndarray, " token"]:
    spans = chain.from_iterable((piece.header, piece.output, piece.trailer) for piece in pieces)
    return np.array([*start, *chain.from_iterable(spans), *end], np.int32)


def _weights(
    start: int, pieces: Sequence[Piece], train_on_what: TrainOnWhat
) -> Float[np.ndarray, " token"]:
    """1 on the outputs that count, 0 elsewhere; `start` tokens stand before the first piece."""
    weights = np.zeros(start + sum(piece.length for piece in pieces), np.float32)
    if train_on_what == TrainOnWhat.ALL_TOKENS:
        weights[start:] = 1
        return weights
    trained = _trained([piece.message for piece in pieces], train_on_what)
    is_last_only = train_on_what in _LAST_RESPONSE
    for piece, is_trained in zip(pieces, trained, strict=True):
        if is_trained and is_last_only and piece.unproducible:
            raise DataError(piece.unproducible)
        if is_trained:
            output = start + len(piece.header)
            said = output + piece.supplied * is_last_only
            weights[said : output + len(piece.output)] = 1
        start += piece.length
    return weights


def only_text(message: Message, format_name: str) -> str:
    """What a message says, in a format that has nothing but text.

    Raises:
        DataError: the message holds something the format cannot write.
    """
    beyond_text = {
        "reasoning": message.thinking,
        "images": any(isinstance(part, ImagePart) for part in message.parts),
        "tool calls": message.tool_calls or message.unparsed_tool_calls,
        "tool declarations": message.tools,
    }
    for what, held in beyond_text.items():
        if held:
            raise DataError(
                f"{format_name} has no way to write {what}; remove it from the {message.role}'s "
                "message, write it into the text, or choose another renderer"
            )
    return message.text


def until_end(tokens: Sequence[int], end: int) -> tuple[list[int], ParseTermination]:
    """What was said before the end token, and whether it ended there once, as it should."""
    stops = tokens.count(end)
    said = list(tokens[: tokens.index(end)]) if stops else list(tokens)
    return said, ParseTermination.STOP_SEQUENCE if stops == 1 else ParseTermination.MALFORMED
