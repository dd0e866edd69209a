"""What a sampled response turns out to be, and what is wrong with it."""

from enum import StrEnum
from typing import NamedTuple

from cookbook_fx.chat import Message


class ParseTermination(StrEnum):
    """How a sampled response ended.

    STOP_SEQUENCE: at the format's own stop, once.
    EOS: at the end-of-sequence token, where the format's own stop is another.
    MALFORMED: at neither, or at several stops: cut off, or not as the format has it.
    """

    STOP_SEQUENCE = "stop_sequence"
    EOS = "eos"
    MALFORMED = "malformed"

    @property
    def is_clean(self) -> bool:
        """The response ended where a response should."""
        return self is not ParseTermination.MALFORMED

    @property
    def is_stop_sequence(self) -> bool:
        """The response ended at the format's own stop."""
        return self is ParseTermination.STOP_SEQUENCE


class ParsedResponse(NamedTuple):
    """A sampled response as a message. Malformed ones hold the text as far as it can be told."""

    message: Message
    termination: ParseTermination


class ParseFailureKind(StrEnum):
    """What kept a response from being read as it was meant.

    STRUCTURAL: it did not end as a response does, so the conversation cannot go on from it.
    CONTENT: it ended well, but something in it that looks like a tool call is none. The model can
        be told so and try again.
    """

    STRUCTURAL = "structural"
    CONTENT = "content"


class ParseFailure(NamedTuple):
    """Why a response could not be read; `detail` is for people, and quotes the response."""

    kind: ParseFailureKind
    detail: str


_MAX_DETAIL = 16384


def classify_parse_failure(parsed: ParsedResponse) -> ParseFailure | None:
    """What is wrong with a parsed response; None if nothing is.

    Where its end is wrong, that is all there is to say: what it holds cannot be relied on. Calls
    that could be read do not make up for one that could not; whether to make them is the caller's
    choice. The detail is at most 16,384 characters long.

    Example:
        >>> cut_off = Message(role="assistant", content="I would sugg")
        >>> classify_parse_failure(ParsedResponse(cut_off, ParseTermination.MALFORMED)).kind.value
        'structural'
        >>> classify_parse_failure(ParsedResponse(cut_off, ParseTermination.STOP_SEQUENCE))
    """
    message, termination = parsed
    if not termination.is_clean:
        detail = f"the response does not end once, at its format's stop: {message.text!r}"
        return ParseFailure(ParseFailureKind.STRUCTURAL, detail[:_MAX_DETAIL])
    if message.unparsed_tool_calls:
        detail = "\n".join(
            f"{call.error}: {call.raw_text!r}" for call in message.unparsed_tool_calls
        )
        return ParseFailure(ParseFailureKind.CONTENT, detail[:_MAX_DETAIL])
    return None
