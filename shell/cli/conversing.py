"""A conversation with a model, a few tokens at a time."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from cookbook_fx.chat import Conversation, Message
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import ParsedResponse, Renderer
from cookbook_fx.renderers.streaming import Delta
from cookbook_fx.runs import derived_seed
from shell.clients import Sampler, SampleRequest

# The protocol has no streams: an answer is asked for piece by piece, each after all that came
# before. Short ones at first, that there is soon something to read; then longer ones, as each has
# the engine read the conversation again.
_FIRST_PIECE = 8
_LONGEST_PIECE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A model that is talked to.

    Args:
        sampler: the weights.
        renderer: the chat format.
        max_tokens: the longest answer.
        temperature: 0 always takes the likeliest token.
        top_p: sample from the likeliest tokens that make up this probability only; 1 from all.
        context_window: tokens that conversation and answer may have together; None leaves that to
            the engine.
        seed: same seed, same answers.

    Raises:
        ConfigurationError: `max_tokens` is below 1.
    """

    sampler: Sampler
    renderer: Renderer
    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    context_window: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigurationError(f"`max_tokens` must be at least 1, got {self.max_tokens}")


@dataclass(slots=True, kw_only=True)
class Answer:
    """An answer under way: what was sampled of it so far.

    Args:
        speaker: who answers.
        conversation: what is answered.
        tokens: what was sampled so far.
        room: tokens it may have; known once it is asked for.
    """

    speaker: Speaker
    conversation: Conversation
    tokens: list[int] = field(default_factory=list)
    room: int = 0

    async def deltas(self) -> AsyncIterator[Delta]:
        """The answer's parts as soon as they are certain.

        Raises:
            ConfigurationError: the conversation fills the context window.
            ServiceError: the engine fails.
        """
        speaker = self.speaker
        prompt = speaker.renderer.build_generation_prompt(self.conversation)
        self.room = self._room(len(prompt))
        parser = speaker.renderer.streaming_parser(prompt)
        state = parser.init()
        piece = _FIRST_PIECE
        # None is the stage of a response that has stopped.
        while len(self.tokens) < self.room and state.stage is not None:
            asked = min(piece, self.room - len(self.tokens))
            (sample,) = await speaker.sampler.sample(
                SampleRequest(
                    prompt=np.append(prompt, np.asarray(self.tokens, prompt.dtype)),
                    max_tokens=asked,
                    stop=speaker.renderer.get_stop_sequences(),
                    temperature=speaker.temperature,
                    top_p=speaker.top_p,
                    seed=_piece_seed(speaker.seed, len(prompt) + len(self.tokens)),
                )
            )
            new = sample.tokens.tolist()
            self.tokens += new
            state = parser.update(state, new)
            for delta in state.deltas:
                yield delta
            if sample.stop_reason != "length" or not new:
                break
            piece = min(2 * piece, _LONGEST_PIECE)
        for delta in parser.finish(state).deltas:
            yield delta

    def so_far(self) -> ParsedResponse:
        """What was said, and whether it came to an end."""
        return self.speaker.renderer.parse_response(self.tokens)

    def _room(self, prompt_tokens: int) -> int:
        window = self.speaker.context_window
        room = self.speaker.max_tokens if window is None else window - prompt_tokens
        if room < 1:
            raise ConfigurationError(
                f"the conversation has {prompt_tokens} tokens and the model can read {window}; "
                "/undo or /reset makes room"
            )
        return min(room, self.speaker.max_tokens)


def said_by(role: str, text: str) -> Message:
    """A message of text."""
    return Message(role=role, content=text)


def harmless(text: str) -> str:
    """What a model says without the characters that would command the terminal."""
    return "".join(
        character for character in text if character in "\n\t" or character.isprintable()
    )


def _piece_seed(seed: int, place: int) -> int:
    """Another one for each place, so that pieces do not repeat one another's luck."""
    return derived_seed(seed, place)
