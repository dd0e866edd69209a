"""What every chat format offers: messages to tokens with loss weights, and tokens to a message."""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from cookbook_fx.chat import Message
from cookbook_fx.renderers.response import ParsedResponse as ParsedResponse
from cookbook_fx.renderers.response import ParseTermination as ParseTermination
from cookbook_fx.renderers.streaming import StreamingParser
from cookbook_fx.tokens import StopSequences


class TrainOnWhat(StrEnum):
    """Which tokens of a conversation have weight 1; headers do with ALL_TOKENS alone.

    LAST_ASSISTANT_MESSAGE: the final message, if it is the assistant's.
    LAST_ASSISTANT_TURN: every assistant message after the last user message.
    ALL_ASSISTANT_MESSAGES, ALL_MESSAGES, ALL_USER_AND_SYSTEM_MESSAGES: as they say.
    ALL_TOKENS: headers too, all but the token that begins a sequence.
    CUSTOMIZED: messages whose `trainable` is true. Every message must say, and with any other
        option none may.

    A message that a format adds of itself, such as a default system prompt, counts as if it had
    been given, but CUSTOMIZED never trains on it.
    """

    LAST_ASSISTANT_MESSAGE = "last_assistant_message"
    LAST_ASSISTANT_TURN = "last_assistant_turn"
    ALL_ASSISTANT_MESSAGES = "all_assistant_messages"
    ALL_MESSAGES = "all_messages"
    ALL_TOKENS = "all_tokens"
    ALL_USER_AND_SYSTEM_MESSAGES = "all_user_and_system_messages"
    CUSTOMIZED = "customized"


class SupervisedExample(NamedTuple):
    """A rendered conversation; `weights[i]` is the loss weight of predicting `tokens[i]`."""

    tokens: Int[np.ndarray, " token"]
    weights: Float[np.ndarray, " token"]


@runtime_checkable
class Renderer(Protocol):
    """One chat format with one tokenizer. Immutable, and safe to use from many threads.

    Control-token text inside a message stays text: only the renderer writes structure.
    """

    @property
    def name(self) -> str:
        """The name `get_renderer` knows the format by."""

    @property
    def has_extension_property(self) -> bool:
        """Whether in every conversation each prompt and its response begin the next prompt."""

    def build_supervised_example(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> SupervisedExample:
        """The whole conversation as one sequence, int32 tokens and float32 weights.

        In a conversation whose prompts do not extend one another, earlier responses stand in it
        as history, not as they were produced; `build_supervised_examples` keeps them apart.

        Raises:
            DataError: there are no messages.
            ConfigurationError: `trainable` is missing under CUSTOMIZED, or said under another
                option.
        """

    def build_supervised_examples(
        self,
        messages: Sequence[Message],
        train_on_what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> tuple[SupervisedExample, ...]:
        """The sequences that show each trained response just as it would be sampled.

        One for the whole conversation if its prompts extend one another, or nothing in it is
        trained; else one for each trained assistant message, cut after it.

        Raises:
            DataError: there are no messages.
            ConfigurationError: as for one example; or several are needed, and the option trains
                on more than assistant messages.
        """

    def encoded_ahead(
        self,
        conversations: Sequence[Sequence[Message]],
        train_on_what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> "Renderer":
        """The same renderer with the texts of these conversations encoded, all in one go.

        For `build_supervised_batch`, and for whoever renders many conversations one by one. What
        cannot be rendered is passed over; it is refused when its turn comes.
        """

    def trusting_content(self) -> "Renderer":
        """The same renderer for text that was formatted elsewhere and is trusted.

        Control tokens that messages spell out become control tokens. Never for what a user, a
        tool or a file of unknown origin says: such text could then forge a turn.

        Raises:
            ConfigurationError: the format has no way to, as `template`.
        """

    def build_generation_prompt(
        self, messages: Sequence[Message], role: str = "assistant", prefill: str | None = None
    ) -> Int[np.ndarray, " token"]:
        """What to sample the next message after.

        Args:
            messages: the conversation so far; may be empty.
            role: who speaks next.
            prefill: how the response begins. Trusted: control-token text in it becomes control
                tokens.
        """

    def get_stop_sequences(self) -> StopSequences:
        """Where sampling a response must stop."""

    def parse_response(self, tokens: Sequence[int] | Int[np.ndarray, " token"]) -> ParsedResponse:
        """The assistant message that sampled tokens, stop included, stand for."""

    def streaming_parser(
        self, prompt: Sequence[int] | Int[np.ndarray, " token"] | None = None
    ) -> StreamingParser:
        """A parser of responses whose tokens arrive a few at a time.

        Args:
            prompt: what the response is sampled after, which tells whether reasoning has begun in
                it. Without one, a response begins as the format's own prompts let it.
        """
