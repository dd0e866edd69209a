"""Episodes of a step to look at: what was asked, what was said, and what was made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32
from markupsafe import Markup

from cookbook_fx.data import Datum
from cookbook_fx.reports.colorized import (
    TokenIds,
    Weights,
    format_html,
    format_html_pieces,
    tokens_and_weights,
)
from cookbook_fx.rl import TrajectoryGroup, trajectory_batch
from cookbook_fx.rl.records import RecordedGroup
from cookbook_fx.rl.replay import EpisodeIndex
from cookbook_fx.tokens import Tokenizer

LOG_PROBABILITY = "log-probability"
ADVANTAGE = "advantage"
WEIGHT = "weight"

# Less likely than this is told apart no more: e⁻⁵ is 0.7 %.
SURPRISE = 5.0
_MOST_TOKENS = 400
_MOST_CHARACTERS = 2000
_NOTHING = Markup("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A text in one or more colorings.

    Args:
        heading: what stands above it, as text.
        colored: by what it is colored by, the text as markup.
        note: what stands below it, as text.
    """

    heading: str
    colored: Mapping[str, Markup]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleColumn:
    """Texts of one time.

    Args:
        title: when.
        prompt: what they answer, as markup; empty where each sample shows it itself.
        samples: one below the other.
    """

    title: str
    prompt: Markup = _NOTHING
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShownText:
    """Tokens of a run that are kept to be looked at.

    Args:
        title: when they were seen or said; texts of one title stand below each other.
        heading: what stands above them, as text.
        prompt: token ids of what they answer; none where they answer nothing.
        tokens: token ids.
        logprobs: of each token when it was sampled, where it was.
        weights: of each token in training, where it is trained on.
    """

    title: str
    heading: str = ""
    prompt: TokenIds = ()
    tokens: TokenIds
    logprobs: Weights | None = None
    weights: Weights | None = None


class _Rows(NamedTuple):
    """The tokens of an episode, and what is known of each."""

    tokens: Int32[np.ndarray, " token"]
    logprobs: Float32[np.ndarray, " token"]
    advantages: Float32[np.ndarray, " token"]


def sampled_text(
    tokens: Sequence[int] | np.ndarray,
    logprobs: Sequence[float] | np.ndarray,
    tokenizer: Tokenizer,
) -> Markup:
    """Tokens colored by their log-probabilities: the redder, the less likely; 0 was not sampled."""
    shown = np.maximum(np.asarray(logprobs, np.float64), -SURPRISE)
    return Markup(format_html(tokens, shown, tokenizer, largest=SURPRISE))


def text_columns(texts: Sequence[ShownText], tokenizer: Tokenizer) -> list[SampleColumn]:
    """Texts as columns by their titles, in the order of the first of each.

    Raises:
        DataError: a token the tokenizer does not know, or not one number for each.
    """
    titles = dict.fromkeys(text.title for text in texts)
    return [
        SampleColumn(
            title=title,
            samples=tuple(_shown_text(text, tokenizer) for text in texts if text.title == title),
        )
        for title in titles
    ]


def _shown_text(text: ShownText, tokenizer: Tokenizer) -> Sample:
    shown = slice(_MOST_TOKENS)
    asked = np.asarray(text.prompt, np.int32)[-_MOST_TOKENS:]
    read = Markup(format_html(asked, np.zeros(len(asked)), tokenizer)) if len(asked) else _NOTHING
    colored = {}
    if text.logprobs is not None:
        said = sampled_text(text.tokens[shown], _finite(text.logprobs)[shown], tokenizer)
        colored[LOG_PROBABILITY] = read + said
    if text.weights is not None:
        trained = format_html(text.tokens[shown], _finite(text.weights)[shown], tokenizer)
        colored[WEIGHT] = read + Markup(trained)
    left = len(text.tokens) - _MOST_TOKENS
    return Sample(
        heading=text.heading, colored=colored, note=f"{left} more tokens" if left > 0 else ""
    )


def sample_column(
    groups: Sequence[RecordedGroup],
    data: Mapping[EpisodeIndex, Sequence[Datum]],
    tokenizer: Tokenizer | None,
    *,
    limit: int = 4,
) -> SampleColumn | None:
    """Answers of a step to one problem, from the best to the worst.

    The problem is the first whose answers earned differently, or else the first one.

    Args:
        groups: of the step.
        data: what was trained on of each episode, where it was.
        tokenizer: the one of the tokens; without it texts are shown as they were recorded.
        limit: answers.

    Returns:
        None where there is no episode.

    Raises:
        DataError: a token the tokenizer does not know.
    """
    ordered = sorted(groups, key=lambda recorded: recorded.index)
    filled = [recorded for recorded in ordered if recorded.group.trajectories_G]
    if not filled:
        return None
    differing = [each for each in filled if len(set(each.group.get_total_rewards())) > 1]
    chosen = (differing or filled)[0]
    rewards = np.asarray(chosen.group.get_total_rewards(), np.float64)
    best_first = np.argsort(-rewards, kind="stable")
    places = np.unique(np.linspace(0, len(rewards) - 1, min(limit, len(rewards))).astype(int))
    samples = [
        _sample(
            chosen, int(member), data.get(EpisodeIndex(chosen.index, int(member)), ()), tokenizer
        )
        for member in best_first[places]
    ]
    return SampleColumn(
        title=f"Step {chosen.step}",
        prompt=_prompt(chosen, tokenizer),
        samples=tuple(samples),
    )


def _sample(
    recorded: RecordedGroup, member: int, data: Sequence[Datum], tokenizer: Tokenizer | None
) -> Sample:
    trajectory = recorded.group.trajectories_G[member]
    rows = _rows(recorded, member, data)
    advantages = np.concatenate([row.advantages for row in rows]) if rows else np.zeros(0)
    taught = advantages[advantages != 0]
    reward = recorded.group.get_total_rewards()[member]
    heading = f"reward {reward:.4g}" + (
        f", advantage {taught.mean():+.3g}" if taught.size else ", not learnt from"
    )
    note = "" if trajectory.stop_reason is None else f"ended: {trajectory.stop_reason}"
    if tokenizer is None or not rows:
        return Sample(heading=heading, colored=_recorded_text(recorded, member, taught), note=note)
    asked = len(trajectory.transitions[0].ob)
    tokens, logprobs, advantages = (
        np.concatenate(column)
        for column in zip(*(tuple(part[asked:] for part in row) for row in rows), strict=True)
    )
    if len(tokens) > _MOST_TOKENS:
        note = ", ".join([f"{len(tokens) - _MOST_TOKENS} more tokens", *filter(None, [note])])
    shown = slice(_MOST_TOKENS)
    return Sample(
        heading=heading,
        colored={
            LOG_PROBABILITY: sampled_text(tokens[shown], logprobs[shown], tokenizer),
            ADVANTAGE: Markup(format_html(tokens[shown], advantages[shown], tokenizer)),
        },
        note=note,
    )


def _rows(recorded: RecordedGroup, member: int, data: Sequence[Datum]) -> list[_Rows]:
    """An episode as the rows that were trained on, or as those that could have been."""
    if data:
        return [
            _Rows(
                np.asarray(tokens_and_weights(datum).tokens, np.int32),
                *(
                    _finite(tokens_and_weights(datum, key=key).weights)
                    for key in ("logprobs", "advantages")
                ),
            )
            for datum in data
        ]
    alone = TrajectoryGroup(
        trajectories_G=[recorded.group.trajectories_G[member]],
        final_rewards_G=[0],
        metrics_G=[{}],
    )
    batch = trajectory_batch([alone])
    return [
        _Rows(
            tokens,
            _finite(batch.sampling_logprobs[start : start + len(tokens)]),
            np.zeros(len(tokens), np.float32),
        )
        for tokens, start in zip(batch.sequences(), batch.row_starts.tolist(), strict=True)
    ]


def _finite(values: Weights) -> Float[np.ndarray, " token"]:
    """What is not a number is shown as nothing, what is too large as large."""
    return np.nan_to_num(np.asarray(values, np.float32), nan=0.0)


def _prompt(recorded: RecordedGroup, tokenizer: Tokenizer | None) -> Markup:
    """What the first turn of a group observed."""
    if tokenizer is None:
        texts = recorded.texts[0]
        return _plain(texts[0].observed) if texts else _NOTHING
    turns = recorded.group.trajectories_G[0].transitions
    asked = np.asarray(turns[0].ob if turns else (), np.int32)[-2 * _MOST_TOKENS :]
    return Markup(format_html(asked, np.zeros(len(asked)), tokenizer))


def _recorded_text(
    recorded: RecordedGroup, member: int, advantages: Float[np.ndarray, " token"]
) -> dict[str, Markup]:
    texts = recorded.texts[member] or ()
    weight = float(advantages.mean()) if advantages.size else 0.0
    pieces = [("", 0.0)]
    for number, turn in enumerate(texts):
        pieces += [(turn.observed if number else "", 0.0), (turn.sampled, weight)]
    shown = [(text[:_MOST_CHARACTERS], each) for text, each in pieces if text]
    return {ADVANTAGE: Markup(format_html_pieces(shown))}


def _plain(text: str) -> Markup:
    return Markup(format_html_pieces([(text[-2 * _MOST_CHARACTERS :], 0.0)]))
