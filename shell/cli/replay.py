"""`cookbook-fx replay`: make a training step again from its records."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cookbook_fx.errors import ConfigurationError, CookbookError, DataError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from cookbook_fx.data import Datum
    from cookbook_fx.reports import ExampleSection
    from cookbook_fx.rl import Objective
    from cookbook_fx.rl.records import RecordedGroup
    from cookbook_fx.rl.replay import ObjectiveFigures, ReplayedBatch
    from cookbook_fx.tokens import Tokenizer

_NOT_WHAT_WAS_SENT = 1
_SENT, _INSTEAD = "as sent", "instead"
# Episodes of a group that fit on a line.
_MEMBERS = 8


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Make a training step of a run again from its records, and say whether it is what was sent.

    Any other option asks what another choice would have made of the same episodes: advantages and
    loss side by side, at the log-probabilities that the model had. The run is not changed, and may
    be under way.

    For example
    $ cookbook-fx replay runs/rl --step 12
    $ cookbook-fx replay runs/rl --step 12 --advantages group_normalized
    $ cookbook-fx replay runs/rl --step 12 --loss ppo --loss-config clip_low_threshold=0.8
    $ cookbook-fx replay runs/rl --step 12 --show 4

    Args:
        run_dir: the folder of a reinforcement-learning run, a path or a URL.
        step: the training step, from 0.
        advantages: instead of the run's: how a trajectory is judged against its group:
            group_centered, group_normalized, leave_one_out or max_rl; none leaves a KL penalty.
        loss: instead of the run's: importance_sampling, ppo, cispo, dro or gspo.
        loss_config: settings of the loss, as name=value.
        truncate_ratios: the largest ratio, with importance_sampling.
        kl_penalty_coef: weight of the KL penalty; only where the run had one is its base policy's
            part known.
        kl_discount_factor: the KL penalty's discount per token.
        groups: groups whose advantages are printed.
        show: episodes to print, token for token: green is reinforced, red is discouraged, yellow
            neither.
    """

    run_dir: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    step: int
    advantages: str | None = None
    loss: str | None = None
    loss_config: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    truncate_ratios: float | None = None
    kl_penalty_coef: float | None = None
    kl_discount_factor: float | None = None
    groups: int = 5
    show: int = 0

    def run(self) -> int:
        """Prints what is found; 0 if the step is what was sent, 1 if it is not."""
        from rich.console import Console

        from shell.stores.mirror import fetched

        console = Console(highlight=False, markup=False, soft_wrap=True)
        with fetched(self.run_dir) as folder:
            return self._print(folder, console)

    def _print(self, folder: Path, console: "Console") -> int:
        groups = _groups(folder, self.step)
        batches = _batches(folder, self.step, groups)
        console.print(_summary(self.step, groups))
        if not batches:
            console.print("Nothing was learnt in this step: no batch was sent.")
        for number, batch in enumerate(batches, start=1):
            console.print(f"batch {number} of {len(batches)}, {_account(batch)}")
        if batches:
            _print_figures(console, batches, self._other(batches[0].objective), rows=self.groups)
        if self.show > 0:
            _print_episodes(console, groups, batches, limit=self.show, tokenizer=_tokenizer(folder))
        is_same = all(batch.difference is None for batch in batches)
        return 0 if is_same else _NOT_WHAT_WAS_SENT

    def _other(self, sent: "Objective") -> "Objective | None":
        """The objective asked about; None if there is none."""
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "advantages",
                "loss",
                "truncate_ratios",
                "kl_penalty_coef",
                "kl_discount_factor",
            )
            if getattr(self, name) is not None
        }
        if self.loss_config:
            from shell.recipes.rl.recipes import loss_settings

            given["loss_config"] = loss_settings(self.loss_config)
        if not given:
            return None
        if self.loss is not None and self.loss != sent.loss:
            # The settings of one loss are no settings of another.
            given = {"loss_config": {}, "truncate_ratios": None} | given
        return replace(sent, **given)


def _groups(run_dir: Path, step: int) -> "tuple[RecordedGroup, ...]":
    """The groups of a step, in order."""
    from shell.stores import RolloutsFile
    from shell.stores.run_folder import ROLLOUTS

    file = RolloutsFile(path=run_dir / ROLLOUTS)
    if not file.path.exists():
        raise ConfigurationError(
            f"{run_dir} is no folder of a reinforcement-learning run: it has no {ROLLOUTS}; give "
            "the --run-dir of a run of `cookbook-fx rl`"
        )
    groups = tuple(sorted(file.groups(step=step), key=lambda group: group.index))
    if not groups:
        steps = file.steps()
        there = f"steps {steps[0]} to {steps[-1]}" if steps else "no step yet"
        raise ConfigurationError(
            f"{file.path} has no rollouts of step {step}; it has those of {there}"
        )
    return groups


def _batches(
    run_dir: Path, step: int, groups: "Sequence[RecordedGroup]"
) -> "tuple[ReplayedBatch, ...]":
    """The batches of a step made again, in the order of sending."""
    from cookbook_fx.rl.replay import replay_batch
    from shell.stores import BatchesFile
    from shell.stores.run_folder import BATCHES

    by_index = {group.index: group for group in groups}
    records = BatchesFile(path=run_dir / BATCHES).batches(step=step)
    return tuple(replay_batch(record, by_index) for record in records)


def _summary(step: int, groups: "Sequence[RecordedGroup]") -> str:
    """What was rolled out."""
    from cookbook_fx.rl import compute_trajectory_metrics

    episodes = [recorded.group for recorded in groups]
    *_, whole = compute_trajectory_metrics(episodes, [group.tags for group in groups])
    rewards = [reward for group in episodes for reward in group.get_total_rewards()]
    failed = sum(len(group.rollout_errors) for group in episodes)
    span = f", from {min(rewards):g} to {max(rewards):g}" if rewards else ""
    behind = max(step - group.sampler_step for group in groups)
    return (
        f"step {step}: {len(groups)} groups, {whole.total_episodes} episodes"
        + (f" and {failed} failures" if failed else "")
        + f", {whole.total_ac_tokens} tokens sampled\n"
        f"rewards: {whole.mean_total_reward:.4g} on average{span}; they differ within "
        f"{whole.frac_mixed:.0%} of the groups\n"
        f"weights that sampled: at most {behind} steps older than those that learnt"
    )


def _account(batch: "ReplayedBatch") -> str:
    """Which batch it is, and whether it is what was sent."""
    record = batch.record
    verdict = (
        f"identical to what was sent (sha256 {record.digest[:12]})"
        if batch.difference is None
        else f"NOT what was sent: {batch.difference}"
    )
    return (
        f"substep {record.substep}, minibatch {record.minibatch}: groups "
        f"{_ranges(record.groups)}, {record.num_datums} datums, {record.num_tokens} tokens: "
        f"{verdict}"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order with those that follow each other drawn together: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _print_figures(
    console: "Console",
    batches: "Sequence[ReplayedBatch]",
    other: "Objective | None",
    *,
    rows: int,
) -> None:
    """What the run's objective made of the step, and beside it another's."""
    from cookbook_fx.rl.replay import (
        compare_objectives,
        objective_figures,
        recorded_training_logprobs,
        remade_batch,
        trajectory_advantages,
    )

    made = {_SENT: [batch.made for batch in batches]}
    objectives = {_SENT: batches[0].objective}
    if other is not None:
        made[_INSTEAD] = [remade_batch(batch, other) for batch in batches]
        objectives[_INSTEAD] = other
    console.print()
    for name, objective in objectives.items():
        console.print(f"{name}: {_description(objective)}")
    try:
        training = [row for batch in batches for row in recorded_training_logprobs(batch)]
        figures = {
            name: objective_figures(
                [datum for one in of_step for datum in one.data], training, objectives[name]
            )
            for name, of_step in made.items()
        }
    except DataError as error:
        console.print(str(error))
    else:
        _print_table(console, figures)
        if other is not None:
            comparison = compare_objectives(figures[_SENT], figures[_INSTEAD])
            console.print(
                f"advantages of another sign: {comparison.sign_changes:.1%} of the tokens; cosine "
                f"of the two gradients: {comparison.gradient_cosine:.3f}"
            )
    advantages = {
        name: [trajectory_advantages(one) for one in of_step] for name, of_step in made.items()
    }
    for line in _group_lines(batches, advantages, limit=rows):
        console.print(line)


def _description(objective: "Objective") -> str:
    """An objective in words."""
    loss = objective.loss_spec
    settings = ", ".join(f"{name}={value:g}" for name, value in loss.settings.items())
    penalty = (
        f", KL penalty {objective.kl_penalty_coef:g} a nat, discounted by "
        f"{objective.kl_discount_factor:g}{'' if objective.kl_centered else ', not centered'}"
        if objective.kl_penalty_coef > 0
        else ""
    )
    return f"{objective.advantages}, {loss.name}" + (f" ({settings})" if settings else "") + penalty


def _print_table(console: "Console", figures: "dict[str, ObjectiveFigures]") -> None:
    """A figure a line, an objective a column."""
    rows = {
        "tokens trained on": lambda one: f"{one.advantages.size}",
        "mean |advantage|": lambda one: f"{_mean_size(one.advantages):.4g}",
        "loss, summed": lambda one: f"{one.loss:.5g}",
        "mean |gradient| by log-probability": lambda one: f"{_mean_size(one.gradients):.4g}",
        "tokens clipped": lambda one: f"{one.clip_fraction:.1%}",
        "effective sample size": lambda one: f"{one.effective_sample_size:.1%}",
    }
    console.print(_columns("", figures))
    for name, text in rows.items():
        console.print(_columns(name, [text(one) for one in figures.values()]))


def _columns(name: str, cells: Iterable[str]) -> str:
    return f"{name:<34}" + "".join(f"{cell:>14}" for cell in cells)


def _mean_size(values: "np.ndarray") -> float:
    return float(abs(values).mean()) if values.size else 0.0


def _group_lines(
    batches: "Sequence[ReplayedBatch]",
    advantages: "dict[str, list[np.ndarray]]",
    *,
    limit: int,
) -> Iterator[str]:
    """Rewards and advantages of some groups, objective below objective."""
    for number, batch in enumerate(batches):
        sizes = batch.made.batch.group_sizes
        ends = sizes.cumsum()
        for index, end, size in zip(batch.record.groups, ends, sizes, strict=True):
            if limit <= 0:
                return
            limit -= 1
            its = slice(end - size, end)
            yield ""
            rewards = batch.made.batch.rewards[its]
            yield _row(f"group {index}", "rewards", [f"{reward:.4g}" for reward in rewards])
            for name, of_step in advantages.items():
                yield _row("", name, [_signed(value) for value in of_step[number][its]])


def _signed(advantage: float) -> str:
    return "-" if isnan(advantage) else f"{advantage:+.3f}"


def _row(group: str, name: str, cells: Sequence[str]) -> str:
    more = [f"... {len(cells) - _MEMBERS} more"] if len(cells) > _MEMBERS else []
    shown = "".join(f"{cell:>9}" for cell in cells[:_MEMBERS])
    return " ".join([f"{group:<10}{name:<8}{shown}", *more])


def _tokenizer(run_dir: Path) -> "Tokenizer | None":
    """The tokenizer of the run's model; None, and said so, where there is none to be had."""
    import json

    from shell.hub import load_tokenizer, resolve_model
    from shell.hub.models import say_on_standard_error as say

    try:
        model = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["model"]["model"]
    except (OSError, ValueError, KeyError, TypeError):
        say(f"{run_dir / 'config.json'} names no model; texts are shown as they were recorded.")
        return None
    try:
        return load_tokenizer(resolve_model(model, say=say, with_weights=False).directory)
    except CookbookError as error:
        say(f"No tokenizer: {error}; texts are shown as they were recorded.")
        return None


def _print_episodes(
    console: "Console",
    groups: "Sequence[RecordedGroup]",
    batches: "Sequence[ReplayedBatch]",
    *,
    limit: int,
    tokenizer: "Tokenizer | None",
) -> None:
    """The first episodes of a step, and what failed."""
    from itertools import islice

    from cookbook_fx.rl.replay import EpisodeIndex, episode_data
    from shell.cli.show import print_examples

    data = {place: datums for batch in batches for place, datums in episode_data(batch).items()}
    places = (
        (recorded, member)
        for recorded in groups
        for member in range(len(recorded.group.trajectories_G))
    )
    console.print()
    for recorded, member in islice(places, limit):
        of_episode = data.get(EpisodeIndex(recorded.index, member), [])
        if tokenizer is None:
            _print_recorded(console, recorded, member, of_episode)
        else:
            print_examples(_sections(recorded, member, of_episode), tokenizer, console=console)
    for recorded in groups:
        for error, count in Counter(recorded.group.rollout_errors).items():
            console.print(
                f"group {recorded.index}: {count} failed with {error.error_type}: "
                f"{error.error_message}"
            )


def _heading(recorded: "RecordedGroup", member: int, data: "Sequence[Datum]") -> str:
    """What an episode earned and why it ended."""
    trajectory = recorded.group.trajectories_G[member]
    reward = recorded.group.get_total_rewards()[member]
    sampled = sum(len(turn.ac.tokens) for turn in trajectory.transitions)
    judged = f"advantage {_mean_advantage(data):+.3f}" if data else "not trained on"
    return (
        f"group {recorded.index}, episode {member}: reward {reward:.4g}, {judged}, "
        f"turns: {len(trajectory.transitions)}, tokens sampled: {sampled}, ended: "
        f"{trajectory.stop_reason or 'by its environment'}"
    )


def _mean_advantage(data: "Sequence[Datum]") -> float:
    import numpy as np

    values = [np.asarray(datum.advantages)[np.asarray(datum.weights) > 0] for datum in data]
    joined = np.concatenate(values)
    return float(joined.mean()) if joined.size else 0.0


def _sections(
    recorded: "RecordedGroup", member: int, data: "Sequence[Datum]"
) -> "Iterator[ExampleSection]":
    """The rows of an episode, weighted by advantage."""
    import numpy as np

    from cookbook_fx.reports import ExampleSection, tokens_and_weights
    from cookbook_fx.rl import TrajectoryGroup, trajectory_batch

    rows = [tuple(tokens_and_weights(datum, key="advantages")) for datum in data]
    if not rows:
        alone = TrajectoryGroup(
            trajectories_G=[recorded.group.trajectories_G[member]],
            final_rewards_G=[0],
            metrics_G=[{}],
        )
        rows = [(row, np.zeros(len(row))) for row in trajectory_batch([alone]).sequences()]
    for number, (tokens, advantages) in enumerate(rows, start=1):
        heading = _heading(recorded, member, data) if number == 1 else f"... its row {number}"
        yield ExampleSection(heading=heading, tokens=tokens, weights=advantages)


def _print_recorded(
    console: "Console", recorded: "RecordedGroup", member: int, data: "Sequence[Datum]"
) -> None:
    """An episode as its texts, or as its tokens' numbers where none were recorded."""
    from cookbook_fx.reports import format_pieces
    from shell.cli.show import has_colors, print_as_it_is

    advantage = _mean_advantage(data) if data else 0.0
    transitions = recorded.group.trajectories_G[member].transitions
    texts = recorded.texts[member] or [
        (" ".join(map(str, turn.ob)) + " ", " ".join(map(str, turn.ac.tokens)) + "\n")
        for turn in transitions
    ]
    pieces = [piece for seen, said in texts for piece in ((seen, 0.0), (said, advantage))]
    console.print(_heading(recorded, member, data), style="bold")
    print_as_it_is(format_pieces(pieces, in_color=has_colors(console)), console=console)
