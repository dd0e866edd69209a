"""A chat template with its tokenizer: what it writes of a conversation, and in which tokens."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from cookbook_fx.chat import Message
from cookbook_fx.errors import DataError
from cookbook_fx.renderers.provenance import (
    ChatTemplate,
    Marks,
    Said,
    Written,
    taken_apart,
    written,
)
from cookbook_fx.renderers.template_entries import Entries, Form, Source, entries, plain
from cookbook_fx.tokens import TextCodec


class _Marking(NamedTuple):
    """How text is marked, and where all that is marked is from."""

    marks: Marks
    sources: list[Source]

    def say(self, text: str, source: Source) -> str:
        self.sources.append(source)
        return Said(text, self.marks, len(self.sources) - 1)


class Script(NamedTuple):
    """A template, and how its tokenizer reads what it writes.

    Args:
        controls: what its own text is searched for, with the white space that tokens swallow.
        ids: of the control tokens, by their text.
        spelled: what control tokens look like.
        trims: it trims what it put together, so marks must leave white space outside.
        reads_text: arguments of calls are given as JSON text, not as objects.
    """

    template: ChatTemplate
    codec: TextCodec
    controls: re.Pattern[str]
    ids: Mapping[str, int]
    spelled: re.Pattern[str]
    trims: bool = False
    reads_text: bool = False

    def conversation(
        self, messages: Sequence[Message], *, is_complete: bool = False
    ) -> "Conversation":
        digest = hashlib.sha256(repr(tuple(messages)).encode()).hexdigest()[:32]
        marking = _Marking(
            marks=Marks(key=f"q{digest}", control=self.spelled, inside_space=self.trims),
            sources=[],
        )
        produced = len(messages) - 1 if is_complete else None
        try:
            return Conversation(
                template=self.template,
                marking=marking,
                marked=entries(messages, Form(marking.say, produced, self.reads_text)),
                plain=entries(messages, Form(plain, produced, self.reads_text)),
            )
        except RecursionError as error:
            raise DataError(
                "the arguments of a call or a tool's parameters are nested too deeply to be given "
                "to a chat template"
            ) from error

    def encode(self, text: Written, begin: int, end: int) -> list[int]:
        """Tokens of `text[begin:end]`; only the template's own text has control tokens."""
        ids: list[int] = []
        pending = ""
        for run, is_said in text.runs(begin, end):
            at = 0
            for token in () if is_said else self.controls.finditer(run):
                if before := pending + run[at : token.start()]:
                    ids += self.codec.encode(before)
                ids.append(self._id(token[0]))
                pending, at = "", token.end()
            pending += run[at:]
        return [*ids, *self.codec.encode(pending)] if pending else ids

    def own_controls(self, text: Written, begin: int, end: int) -> Iterator["_Token"]:
        """The control tokens that the template itself wrote in `text[begin:end]`."""
        at = begin
        for run, is_said in text.runs(begin, end):
            for token in () if is_said else self.controls.finditer(run):
                yield _Token(at + token.start(), at + token.end(), self._id(token[0]))
            at += len(run)

    def _id(self, token: str) -> int:
        return self.ids[token] if token in self.ids else self.ids[token.strip()]


class _Token(NamedTuple):
    begin: int
    end: int
    id: int


class Conversation(NamedTuple):
    """Messages as a template is given them, marked and plain."""

    template: ChatTemplate
    marking: _Marking
    marked: Entries
    plain: Entries

    def written(self, count: int, *, asks: bool) -> Written:
        """The first messages as the template writes them.

        Raises:
            DataError: it refuses them, or takes them apart.
        """
        return written(self._rendered(self.marked, count, asks=asks), self.marking.marks)

    def verified(self, *, asks: bool) -> Written:
        """All messages, once it is sure that nothing is amiss.

        Raises:
            DataError: as above; or something said is not written, or otherwise if it is not marked.
        """
        count = len(self.marked.messages)
        text = self.written(count, asks=asks)
        if text.text != self._rendered(self.plain, count, asks=asks):
            raise taken_apart()
        shown = {span.source for span in text.spans}
        for index, source in enumerate(self.marking.sources):
            if source.is_required and index not in shown:
                raise DataError(
                    f"the chat template never writes the {source.what} of message "
                    f"{source.message}; remove it, or choose another renderer"
                )
        return text

    def _rendered(self, entries: Entries, count: int, *, asks: bool) -> str:
        given = [entry for entry in entries.messages[:count] if entry is not None]
        return self.template.write(given, entries.tools, asks=asks)

    def turns(self, text: Written) -> list["Turn | None"]:
        """Of each message, where what it says begins and ends; None if it is not there.

        What stands before the turn of an earlier message is not in its turn.
        """
        turns: list[Turn | None] = [None] * len(self.marked.messages)
        ordered = sorted(
            (source.message, span.begin, span.end)
            for span in text.spans
            if (source := self.marking.sources[span.source]).is_turn
        )
        at = 0
        for message, begin, end in ordered:
            if begin >= at:
                turn = turns[message]
                turns[message] = Turn(begin if turn is None else turn.begin, end)
                at = end
        return turns


class Turn(NamedTuple):
    """What a message says stands in `text[begin:end]`."""

    begin: int
    end: int


def script_of(template: ChatTemplate, codec: TextCodec) -> Script:
    """The template as this tokenizer reads it, before anything is found out about it."""
    # White space that some vocabularies add for indentation is text.
    added = [
        token
        for token in codec.complete.get_added_tokens_decoder().values()
        if not token.content.isspace()
    ]
    # A token that begins as another must be looked for first.
    added.sort(key=lambda token: len(token.content), reverse=True)
    spelled = "|".join(re.escape(token.content) for token in added)
    swallowing = "|".join(
        r"\s*" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip for token in added
    )
    # Without any there is nothing to find.
    return Script(
        template=template,
        codec=codec,
        controls=re.compile(swallowing or "(?!)"),
        ids={token.content: codec.control(token.content) for token in added},
        spelled=re.compile(spelled or "(?!)"),
    )
