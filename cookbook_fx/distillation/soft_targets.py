"""Examples whose targets are a teacher's opinion: its likeliest tokens and their probabilities."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from cookbook_fx.chat import Conversation
from cookbook_fx.data import Datum
from cookbook_fx.distillation.teaching import OwnPrompt
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import Renderer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaughtExample:
    """A text to learn from, token by token, by what a teacher would have said at each.

    Args:
        tokens: what the student reads.
        weights: how much each token's place counts; 0 at the prompt.
        prompt: what the teacher is shown in place of the student's prompt; None is the same.

    Raises:
        DataError: there is not one weight for each token, or fewer than two tokens.
    """

    tokens: Int[np.ndarray, " token"]
    weights: Float[np.ndarray, "..."]
    prompt: OwnPrompt | None = None

    def __post_init__(self) -> None:
        if self.weights.shape != self.tokens.shape or len(self.tokens) < 2:
            raise DataError(
                "an example needs at least 2 tokens and a weight for each, got "
                f"{len(self.tokens)} and {self.weights.shape}"
            )

    @property
    def shown(self) -> Int[np.ndarray, " shown"]:
        """What the teacher reads."""
        return self.tokens if self.prompt is None else self.prompt.shown(self.tokens)


def taught_examples(
    conversations: Iterable[Conversation],
    *,
    renderer: Renderer,
    max_length: int | None = None,
    teacher_renderer: Renderer | None = None,
    teacher_prompt: Callable[[Conversation], Conversation] | None = None,
) -> tuple[TaughtExample, ...]:
    """The last message of each conversation as a text to be taught.

    Args:
        conversations: each ends with a message of the assistant.
        renderer: the student's chat format.
        max_length: tokens to keep of an example; what lies behind them is cut off. None keeps all.
        teacher_renderer: the teacher's chat format; None is the student's.
        teacher_prompt: from a whole conversation, what the teacher is asked in place of all but its
            last message: with the right answer shown as a demonstration, say, which makes a model
            its own teacher. None is the same prompt.

    Raises:
        DataError: a conversation does not end with the assistant; the student's format does not
            write a response behind its own prompt; or the limit cuts off a whole response.
    """
    return tuple(
        _example(number, conversation, renderer, max_length, teacher_renderer, teacher_prompt)
        for number, conversation in enumerate(conversations)
    )


def _example(
    number: int,
    conversation: Conversation,
    renderer: Renderer,
    max_length: int | None,
    teacher_renderer: Renderer | None,
    teacher_prompt: Callable[[Conversation], Conversation] | None,
) -> TaughtExample:
    if not conversation or conversation[-1].role != "assistant":
        raise DataError(f"conversation {number} must end with a message of the assistant")
    prompt = renderer.build_generation_prompt(conversation[:-1])
    rendered = renderer.build_supervised_example(conversation)
    if not np.array_equal(rendered.tokens[: len(prompt)], prompt):
        raise DataError(
            f"conversation {number}: the renderer {renderer.name} does not write a response just "
            "behind its own prompt; choose one that does"
        )
    tokens = rendered.tokens[:max_length]
    if len(tokens) <= len(prompt):
        raise DataError(
            f"conversation {number} has a prompt of {len(prompt)} tokens, and `max_length` "
            f"{max_length} leaves nothing of its response; raise it"
        )
    weights = np.where(np.arange(len(tokens)) < len(prompt), 0, rendered.weights[: len(tokens)])
    own = None
    if teacher_renderer is not None or teacher_prompt is not None:
        asked = conversation[:-1] if teacher_prompt is None else teacher_prompt(conversation)
        writes = teacher_renderer or renderer
        own = OwnPrompt(student=prompt, teacher=writes.build_generation_prompt(asked))
    return TaughtExample(tokens=tokens, weights=weights.astype(np.float32), prompt=own)


def soft_target_datum(
    example: TaughtExample,
    ids: Int[np.ndarray, "shown candidate"],
    logprobs: Float[np.ndarray, "shown candidate"],
    *,
    renormalized: bool = True,
) -> Datum:
    """A datum whose cross-entropy is that of the teacher's likeliest tokens: -Σₖ qₖ log pₖ.

    It differs from KL(teacher ‖ student) over these tokens by a constant, so it pulls the student
    to the teacher's whole opinion and not to one token drawn from it.

    Args:
        example: the text.
        ids: for each token that the teacher was shown, the likeliest tokens in its place.
        logprobs: how likely they are, nats; nan or -inf where there is none.
        renormalized: whether they count as if they were all there is; else as what they are, so
            that what the teacher gave to other tokens is left out.

    Raises:
        DataError: there is not a row for each token that was shown; or none of the candidates has a
            probability in a place that counts.

    Example:
        >>> example = TaughtExample(
        ...     tokens=np.array([5, 6, 7]), weights=np.array([0, 0, 1], np.float32))
        >>> ids = np.array([[0, 0], [6, 8], [7, 9]])
        >>> logprobs = np.log(np.array([[np.nan, np.nan], [0.5, 0.5], [0.6, 0.2]]))
        >>> datum = soft_target_datum(example, ids, logprobs)
        >>> datum.target_tokens.tolist(), datum.weights.round(2).tolist()
        ([[6, 8], [7, 9]], [[0.0, 0.0], [0.75, 0.25]])

    Reference: Hinton et al. 2015, Distilling the knowledge in a neural network, arXiv:1503.02531.
    """
    shown = example.shown
    if ids.ndim != 2 or ids.shape != logprobs.shape or len(ids) != len(shown):
        raise DataError(
            f"the teacher was shown {len(shown)} tokens and must tell candidates for each; got "
            f"shapes {ids.shape} and {logprobs.shape}"
        )
    # Places are counted from the end: behind the prompts both read the same tokens.
    count = min(len(shown), len(example.tokens)) - 1
    if example.prompt is not None:
        count = min(count, len(example.tokens) - len(example.prompt.student))
    targets = np.zeros((len(example.tokens) - 1, ids.shape[1]), np.int32)
    shares = np.zeros(targets.shape)
    known = logprobs[-count:] > -np.inf  # False of nan
    shares[-count:] = np.where(known, np.exp(np.where(known, logprobs[-count:], 0)), 0)
    targets[-count:] = np.where(known, ids[-count:], 0)
    total = shares.sum(axis=1, keepdims=True)
    weights = example.weights[1:, None]
    if ((total == 0) & (weights != 0)).any():
        raise DataError("the teacher told no candidate in a place that is to be learned")
    if renormalized:
        shares = shares / np.where(total == 0, 1, total)
    return Datum(
        tokens=example.tokens[:-1].astype(np.int32),
        target_tokens=targets,
        weights=(weights * shares).astype(np.float32),
    )


def check_top_k(top_k: int) -> None:
    """Refuses a number of candidates that cannot be asked for.

    Raises:
        ConfigurationError: it is below 1.
    """
    if top_k < 1:
        raise ConfigurationError(f"`top_k` must be at least 1 candidate, got {top_k}")
