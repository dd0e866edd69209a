"""Groups of episodes as parts of a logtree: what was asked, said, earned and noted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cookbook_fx.reports.logtree import (
    Colored,
    Conversation,
    Node,
    Scope,
    Table,
    Text,
    Turn,
    colored,
)
from cookbook_fx.reports.samples import SURPRISE
from cookbook_fx.rl import Trajectory, TrajectoryGroup, Transition
from cookbook_fx.tokens import Tokenizer

# Of one turn; the rest is told to be there.
_MOST_TOKENS = 4000


def group_scope(
    group: TrajectoryGroup,
    *,
    title: str,
    tags: Sequence[str],
    tokenizer: Tokenizer | None,
    notes: Scope | None = None,
    num_rollouts: int = 8,
    attributes: Mapping[str, Any] | None = None,
) -> Scope:
    """A group's rewards, and some of its episodes from the best to the worst.

    Args:
        group: the episodes.
        title: what it is called.
        tags: of the group.
        tokenizer: makes text of tokens, colored by the log-probabilities that they were sampled
            with; None tells their number alone.
        notes: what the environments themselves have logged, if anything.
        num_rollouts: episodes shown; of more, the best, the worst and some between.
        attributes: more about the group.

    Raises:
        DataError: a token the tokenizer does not know.
    """
    totals = group.get_total_rewards()
    order = np.argsort(-np.asarray(totals, np.float64), kind="stable")
    count = min(num_rollouts, len(order))
    shown = [int(order[i]) for i in np.unique(np.linspace(0, len(order) - 1, count).astype(int))]
    children: list[Node] = [_rewards(group, totals)] if totals else []
    children += [_episode(group, member, totals[member], tokenizer) for member in shown]
    children += [
        Text(text=f"An episode failed with {error.error_type}: {error.error_message}")
        for error in group.rollout_errors
    ]
    noted = None if notes is None else _pruned(notes)
    if noted is not None:
        children.append(Scope(title="Logged", children=noted.children, is_folded=True))
    about = {"tags": ", ".join(tags)} if tags else {}
    return Scope(title=title, attributes=about | dict(attributes or {}), children=tuple(children))


def _rewards(group: TrajectoryGroup, totals: Sequence[float | int]) -> Table:
    names = list(dict.fromkeys(name for metrics in group.metrics_G for name in metrics))
    rows = [
        (
            member,
            total,
            final,
            episode.stop_reason or "",
            len(episode.transitions),
            sum(len(turn.ac.tokens) for turn in episode.transitions),
            *(metrics.get(name, "") for name in names),
        )
        for member, (total, final, episode, metrics) in enumerate(
            zip(totals, group.final_rewards_G, group.trajectories_G, group.metrics_G, strict=True)
        )
    ]
    columns = ("episode", "reward", "of it final", "ended", "turns", "sampled tokens", *names)
    return Table(columns=columns, rows=tuple(rows))


def _episode(
    group: TrajectoryGroup, member: int, total: float | int, tokenizer: Tokenizer | None
) -> Scope:
    episode = group.trajectories_G[member]
    children: list[Node] = []
    if tokenizer is not None:
        children.append(Conversation(turns=tuple(_turns(episode, tokenizer))))
    children.append(_numbers(episode))
    children += [
        Table(columns=(), rows=tuple(turn.logs.items()), caption=f"logs of turn {number}")
        for number, turn in enumerate(episode.transitions)
        if turn.logs
    ]
    return Scope(title=f"Episode {member}", attributes={"reward": total}, children=tuple(children))


def _numbers(episode: Trajectory) -> Table:
    names = list(dict.fromkeys(name for turn in episode.transitions for name in turn.metrics))
    rows = [
        (
            number,
            len(turn.ob),
            len(turn.ac.tokens),
            turn.reward,
            *(turn.metrics.get(name, "") for name in names),
        )
        for number, turn in enumerate(episode.transitions)
    ]
    columns = ("turn", "observed tokens", "sampled tokens", "reward", *names)
    return Table(columns=columns, rows=tuple(rows))


def _turns(episode: Trajectory, tokenizer: Tokenizer) -> list[Turn]:
    """What each turn observed beyond what came before it, and what it said."""
    turns = []
    known = np.zeros(0, np.int64)
    for transition in episode.transitions:
        observed = np.asarray(transition.ob, np.int64)
        is_continued = np.array_equal(observed[: len(known)], known)
        new = observed[len(known) :] if is_continued else observed
        if len(new):
            turns.append(Turn(role="observed", content=(_read(new, tokenizer),)))
        said = np.asarray(transition.ac.tokens, np.int64)
        if len(said):
            turns.append(_said(transition, tokenizer))
        known = np.concatenate([observed, said])
    return turns


def _read(tokens: np.ndarray, tokenizer: Tokenizer) -> Text:
    # The end of what is too long is what was answered.
    left_out = (
        f"({len(tokens) - _MOST_TOKENS} tokens before)\n" if len(tokens) > _MOST_TOKENS else ""
    )
    ids = [int(token) for token in tokens[-_MOST_TOKENS:]]
    return Text(text=left_out + tokenizer.decode(ids))


def _said(transition: Transition, tokenizer: Tokenizer) -> Turn:
    tokens = transition.ac.tokens[:_MOST_TOKENS]
    logprobs = transition.ac.maybe_logprobs
    content: Text | Colored = Text(text=tokenizer.decode([int(token) for token in tokens]))
    if logprobs is not None:
        values = np.nan_to_num(np.asarray(logprobs[:_MOST_TOKENS], np.float64))
        content = colored(
            tokens,
            np.maximum(values, -SURPRISE),
            tokenizer,
            colored_by="log-probability",
            largest=SURPRISE,
        )
    left = len(transition.ac.tokens) - len(tokens)
    return Turn(role="sampled", content=(content,), note=f"{left} more tokens" if left else "")


def _pruned(scope: Scope) -> Scope | None:
    """The scope without those in it that hold nothing; None if it holds nothing itself."""
    children = [_pruned(each) if isinstance(each, Scope) else each for each in scope.children]
    kept = tuple(each for each in children if each is not None)
    if not kept:
        return None
    return Scope(
        title=scope.title, attributes=scope.attributes, children=kept, is_folded=scope.is_folded
    )
