"""Any model's format, as its tokenizer's own chat template writes it.

A chat template makes one text of the messages, and a tokenizer that reads the text takes whatever
spells a control token for one, no matter who said it. Here it is known of every letter whether it
was said or is the template's own, and control tokens are looked for in its own alone.

    <|im_start|>assistant⏎ ┆ Hello<|im_end|> ┆ ⏎
      the template's own     said and own      own

Where loss weights go is found from what the template writes. A response's output begins where the
prompt that asks for it ends, any other output with what is said. It goes on to the token that ends
a turn or, where there is none, to the next token or output. Text that the template adds of itself,
such as a default system prompt, or writes elsewhere than in its turn counts as header.

The tokens are those of the text, but that outputs are tokenized apart from their headers, as when
they are sampled. What a tag means cannot be told from a template: responses are parsed as text,
with reasoning and calls in it as the model wrote them.

Reasoning must stand before the text; images, and calls that could not be parsed, are refused. So
is whatever the template would drop without a word, but for reasoning in history, call ids, and
details of tools' declarations.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers.layout import Layout, LayoutRenderer, Piece
from cookbook_fx.renderers.provenance import Written, chat_template
from cookbook_fx.renderers.renderer import (
    ParsedResponse,
    ParseTermination,
    Renderer,
    TrainOnWhat,
)
from cookbook_fx.renderers.template_entries import has_entry
from cookbook_fx.renderers.template_facts import (
    ANSWER,
    QUESTION,
    Facts,
    facts_of,
    reading_alike,
    trimming_alike,
)
from cookbook_fx.renderers.template_script import Conversation, Script, Turn, script_of
from cookbook_fx.tokens import StopSequences, TextCodec, Tokenizer, text_codec


def template(
    tokenizer: Tokenizer,
    *,
    variables: Mapping[str, Any] | None = None,
    date: datetime.date | None = None,
) -> Renderer:
    """The renderer that follows the tokenizer's own chat template.

    Args:
        tokenizer: with a chat template.
        variables: what the template may ask for, such as `{"enable_thinking": False}`.
        date: what the template takes for today. There is none by default, never the clock's: a
            template then uses one of its own, or refuses.

    Raises:
        ConfigurationError: the tokenizer has no template, or one that cannot be followed: it
            refuses a plain question and answer, ends a response with no token, or writes for this
            tokenizer what `transformers` does not.
        ModelError: text cannot be told apart from control tokens in this tokenizer.
    """
    source = tokenizer.chat_template
    if not isinstance(source, str):
        raise ConfigurationError(
            "the tokenizer has no chat template, or several; set its `chat_template` to the Jinja "
            "text of one, or choose another renderer"
        )
    codec = text_codec(tokenizer)
    given = {**tokenizer.special_tokens_map, **(variables or {})}
    script = script_of(chat_template(source, given, date=date), codec)
    try:
        script = reading_alike(trimming_alike(script))
        layout = _Template(script=script, facts=facts_of(script, tokenizer.bos_token_id))
        # transformers' own text depends on the day.
        if "strftime_now" not in source:
            _check(layout, tokenizer, variables or {})
    except DataError as error:
        asks_the_clock = "strftime_now" in source and date is None
        raise ConfigurationError(
            f"the tokenizer's chat template cannot be followed: {error}"
            + ("; it may want to know the `date`, which must be given" if asks_the_clock else "")
        ) from error
    return LayoutRenderer(layout=layout, remembering=_remembering)


def _check(layout: "_Template", tokenizer: Tokenizer, variables: Mapping[str, Any]) -> None:
    """
    Raises:
        DataError: `transformers` writes something else, or the tokens do not spell the text.
    """
    plain = [{"role": said.role, "content": said.text} for said in (QUESTION, ANSWER)]
    wanted = tokenizer.apply_chat_template(plain, tokenize=False, **variables)
    codec = layout.codec
    text = layout.script.conversation([QUESTION, ANSWER]).verified(asks=False).text
    if text != wanted:
        raise DataError(f"it writes {text!r} here, and {wanted!r} in `transformers`")
    tokens = (
        LayoutRenderer(layout=layout)
        .build_supervised_example([QUESTION, ANSWER], TrainOnWhat.ALL_TOKENS)
        .tokens
    )
    spelled, wanted = codec.decode(tokens.tolist()), codec.decode(codec.encode_trusted(wanted))
    if spelled != wanted:
        raise DataError(
            f"the tokens of pieces of {wanted!r} spell {spelled!r}; a tokenizer that adds spaces "
            "of its own cannot be used in pieces"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Template:
    """The layout of a template.

    Args:
        prompts: what was found to ask for a response to the first messages, by how many they are,
            where it is remembered: all conversations asked about begin alike.
    """

    script: Script
    facts: Facts
    prompts: dict[int, Written | None] | None = field(default=None, repr=False)

    name = "template"
    # Whether it holds depends on the messages; no template says.
    has_extension_property = False

    @property
    def codec(self) -> TextCodec:
        return self.script.codec

    @property
    def start(self) -> Sequence[int]:
        return self.facts.start_ids

    @property
    def stop_sequences(self) -> StopSequences:
        return self.facts.stops

    def extends(self, messages: Sequence[Message]) -> bool:
        turns = self.script.conversation(messages, is_complete=True)
        text = turns.verified(asks=False)
        cuts = self._cuts(turns, messages, text)
        final = len(messages) - 1
        return all(
            cut.is_asked and (i == final or self._stays(turns, messages[: i + 1], text))
            for i, cut in enumerate(cuts)
            if messages[i].role == "assistant"
        )

    def _stays(self, turns: "Conversation", messages: Sequence[Message], text: Written) -> bool:
        """Whether the text begins with these messages as the last of them was produced."""
        try:
            produced = turns.written(len(messages), asks=False)
        except DataError:
            return False
        end = self._cuts(turns, messages, produced)[-1].end
        return text.begins_with(produced.until(end))

    def pieces(self, messages: Sequence[Message], *, is_complete: bool) -> list[Piece]:
        if not is_complete:
            # A template may write the last message otherwise where it asks for another, so a
            # prompt cannot be put together: all of it is the generation header.
            return []
        turns = self.script.conversation(messages, is_complete=True)
        text = turns.verified(asks=False)
        cuts = self._cuts(turns, messages, text)
        at, pieces = self._start_of(text), []
        for message, cut in zip(messages, cuts, strict=True):
            pieces.append(
                Piece(
                    message,
                    self.script.encode(text, at, cut.begin),
                    self.script.encode(text, cut.begin, cut.end),
                    unproducible=None if cut.is_asked else _UNPRODUCIBLE,
                )
            )
            at = cut.end
        trailer = self.script.encode(text, at, len(text.text))
        return [*pieces[:-1], pieces[-1]._replace(trailer=trailer)]

    def generation_header(self, role: str, messages: Sequence[Message]) -> Sequence[int]:
        if role == "assistant" and any(map(has_entry, messages)):
            turns = self.script.conversation(messages)
            text = turns.verified(asks=True)
        else:
            turns, text = self._opened(messages, role)
        ids: list[int] = []
        at = self._start_of(text)
        for cut in self._cuts(turns, messages, text):
            ids += self.script.encode(text, at, cut.begin)
            ids += self.script.encode(text, cut.begin, cut.end)
            at = cut.end
        return [*ids, *self.script.encode(text, at, len(text.text))]

    def _start_of(self, text: Written) -> int:
        """How much of the text stands before all messages."""
        if not text.text.startswith(self.facts.start):
            raise DataError(
                f"the chat template begins this conversation without {self.facts.start!r}, and "
                "others with it; choose another renderer"
            )
        return len(self.facts.start)

    def _cuts(
        self, turns: "Conversation", messages: Sequence[Message], text: Written
    ) -> list["_Cut"]:
        """Where each message's output is; one that has no turn has an empty one."""
        said = turns.turns(text)[: len(messages)]
        begins: list[int | None] = [turn and turn.begin for turn in said]
        asked = [True] * len(messages)
        for index, message in enumerate(messages):
            if message.role == "assistant":
                prompt = self._prompt(turns, messages[:index])
                asked[index] = prompt is not None and text.begins_with(prompt)
                if prompt is not None and asked[index]:
                    begins[index] = len(prompt.text)
                else:
                    begins[index] = self._after_header(text, said, index)
        cuts: list[_Cut] = []
        at = len(self.facts.start)
        for index, (begin, turn) in enumerate(zip(begins, said, strict=True)):
            begin = at if begin is None else max(at, begin)
            later = (b for b in islice(begins, index + 1, None) if b is not None)
            after = next(later, len(text.text))
            if begins[index] is not None:
                at = self._end(text, max(begin, turn.end if turn else begin), max(begin, after))
            cuts.append(_Cut(begin, max(begin, at), asked[index]))
        return cuts

    def _after_header(self, text: Written, said: Sequence["Turn | None"], index: int) -> int | None:
        """Where a response begins in history that is not as it was when it was asked for."""
        # Turns stand in order.
        before = next((turn.end for turn in reversed(said[:index]) if turn), 0)
        after = next((turn.begin for turn in said[index:] if turn), len(text.text))
        header = text.text.rfind(self.facts.header, before, after) if self.facts.header else -1
        turn = said[index]
        return header + len(self.facts.header) if header >= 0 else turn and turn.begin

    def _end(self, text: Written, after: int, limit: int) -> int:
        """Where an output ends whose last word ends at `after`."""
        controls = list(self.script.own_controls(text, after, limit))
        ends = (token.end for token in controls if token.id in self.facts.ends)
        return next(ends, controls[0].begin if controls else limit)

    def _prompt(self, turns: "Conversation", messages: Sequence[Message]) -> Written | None:
        """What asks for a response to the first messages, if the template lets it be asked for."""
        if self.prompts is None:
            return self._found_prompt(turns, messages)
        if len(messages) not in self.prompts:
            self.prompts[len(messages)] = self._found_prompt(turns, messages)
        return self.prompts[len(messages)]

    def _found_prompt(self, turns: "Conversation", messages: Sequence[Message]) -> Written | None:
        try:
            if any(map(has_entry, messages)):
                return turns.written(len(messages), asks=True)
            return self._opened(messages, "assistant")[1]
        except DataError:
            return None

    def _opened(self, messages: Sequence[Message], role: str) -> tuple["Conversation", Written]:
        """What stands before a message that a template can write but not ask for."""
        turns = self.script.conversation([*messages, Message(role=role, content="said")])
        text = turns.verified(asks=False)
        turn = turns.turns(text)[-1]
        if turn is None:
            raise DataError(f"the chat template gives a {role} no turn after this conversation")
        before = text.until(turn.begin)
        # Some formats open a response further than their prompts do.
        header = before.text.rfind(self.facts.header) if self.facts.header else -1
        if role == "assistant" and header >= 0:
            before = before.until(header + len(self.facts.header))
        return turns, before

    def parse(self, tokens: list[int]) -> ParsedResponse:
        stops = [index for index, token in enumerate(tokens) if token in self.facts.stops]
        said = self.codec.decode(tokens[: stops[0]] if stops else tokens)
        if stops:
            said = said.removeprefix(self.facts.before).removesuffix(self.facts.after)
        is_clean = len(stops) == 1
        return ParsedResponse(
            Message(role="assistant", content=said),
            ParseTermination.STOP_SEQUENCE if is_clean else ParseTermination.MALFORMED,
        )


def _remembering(layout: Layout) -> Layout:
    """One that renders each prompt once, for one conversation and its beginnings."""
    return replace(layout, prompts={}) if isinstance(layout, _Template) else layout


class _Cut(NamedTuple):
    """Where an output is, and whether the text up to there is the prompt that asks for it."""

    begin: int
    end: int
    is_asked: bool


_UNPRODUCIBLE = (
    "the chat template writes this response otherwise than its own prompt begins it, so it cannot "
    "be trained on as the last one; where the prompt opens the reasoning, give the response some "
    "as a part of its own, or choose another renderer"
)
