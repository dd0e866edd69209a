"""From sampled episodes to `tinker.Datum`s, here and in tinker-cookbook, side by side.

    python -m benchmarks.rl_batches [--sizes 64x16x512 64x16x1024 256x16x512 256x16x1024]
        [--turns 1 4] [--held lists arrays] [--cores 2] [--repeats 5] [--peer-repeats 2]

Both sides begin with the same episodes inside the records that each side's rollouts make of them:
the peer with Python lists of Python's numbers, as an SDK answer's `tokens` and `logprobs` are; ours
with such lists as well, and with the arrays that the same answer holds as `tokens_np` and
`logprobs_np`, which is what `shell.rollouts` keeps. Both end with the list of
`tinker.Datum`s to train on: advantages centered in groups, and a penalty for leaving the base
model, whose log-probabilities wait in Python lists too. A size is groups x episodes x mean tokens
of an episode. They run in one process with the same settings, taking turns, each after a collection
of garbage and with the collector on. Where tinker-cookbook discounts more than a million tokens it
takes about a minute and runs once. Where the machine is busy believe the ratio of processor time:
the best of many short runs dodges what a long one cannot.

Before a row is printed both results are compared: tokens, masks, log-probabilities, and the
advantages of the tokens that are trained on. Off the mask they differ on purpose: ours are 0, while
the peer's discounted penalty also falls on prompts.

Needs the extra `peers` and tinker-cookbook, which asks for an older transformers than this
library and therefore has to be installed past its pins:

    python -m pip install --no-deps tinker-cookbook
    python -m pip install blobfile chz cloudpickle
"""

import argparse
import asyncio
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tinker

from benchmarks import episodes, timing
from benchmarks.episodes import Turn, Work
from cookbook_fx import rl
from shell.clients.convert import to_sdk_data

_LONG_FOR_PEER = 1_000_000  # tokens
# Of the largest advantage. Both sides compute in float32, and a discounted sum goes over up to
# four thousand tokens one by one.
_TOLERANCE = 1e-5


class Path(NamedTuple):
    """What is done to the advantages, and how many times faster we mean to be."""

    name: str
    coef: float
    gamma: float
    wanted: float | None


_PATHS = (
    Path("KL, discounted", 0.1, 0.999, 100.0),
    Path("KL", 0.1, 0.0, None),
    Path("advantages", 0.0, 0.0, 8.0),
)


def main() -> None:
    """Prints a row for each size, number of turns and path, and where our time goes."""
    arguments = _arguments()
    timing.settle(arguments.cores)
    theirs, their_groups_of = _peer(arguments.cores)
    print(
        f"{arguments.cores} core(s); the best of {arguments.repeats} runs here and of "
        f"{arguments.peer_repeats} in tinker-cookbook (of 1 where it discounts over "
        f"{_LONG_FOR_PEER} tokens)"
    )
    print(
        f"{'groups':>11} {'turns':>5} {'held':>6} {'tokens':>8} {'rows':>5} {'path':>14} |"
        f" {'ours':>8} {'peer':>8} s |  ratio processor  wanted | {'first call':>10} |"
        f" largest difference"
    )
    for size in arguments.sizes:
        for turns in arguments.turns:
            work = episodes.make_work(*(int(part) for part in size.split("x")), turns=turns)
            peer = their_groups_of(work)
            for held in arguments.held:
                ours = episodes.our_groups(work, as_arrays=held == "arrays")
                for path in _PATHS:
                    is_long = path.gamma > 0 and work.tokens > _LONG_FOR_PEER
                    _compare(
                        f"{size:>11} {turns:>5} {held:>6} {work.tokens:>8} "
                        f"{len(work.base_logprobs):>5}",
                        path,
                        partial(_ours, ours, work.base_logprobs, path),
                        partial(theirs, peer, work.base_logprobs, path),
                        repeats=arguments.repeats,
                        peer_repeats=1 if is_long else arguments.peer_repeats,
                    )
                _print_stages(ours, work.base_logprobs, arguments.repeats)


def _compare(
    label: str,
    path: Path,
    ours: Callable[[], list[tinker.Datum]],
    theirs: Callable[[], list[tinker.Datum]],
    *,
    repeats: int,
    peer_repeats: int,
) -> None:
    first_call, our_data = timing.timed(ours)
    peer_call, their_data = timing.timed(theirs)
    difference = _difference(our_data, their_data)
    del our_data, their_data
    mine, peer = [], [peer_call]
    for repeat in range(repeats):
        mine.append(timing.timed(ours)[0])
        if repeat + 1 < peer_repeats:
            peer.append(timing.timed(theirs)[0])
    best, its_best = timing.shortest(mine), timing.shortest(peer)
    processor = min(t.processor for t in peer) / min(t.processor for t in mine)
    wanted = f"{path.wanted:.0f}x" if path.wanted else "-"
    print(
        f"{label} {path.name:>14} | {best:8.3f} {its_best:8.3f} s | {its_best / best:6.1f}x"
        f" {processor:8.1f}x {wanted:>7} | {first_call.wall:8.2f} s | {difference:.1e}",
        flush=True,
    )


def _print_stages(
    groups: Sequence[rl.TrajectoryGroup], base: Sequence[Sequence[float | None]], repeats: int
) -> None:
    """The first path again, and how long each call of ours took in its fastest run."""
    fastest, stages = math.inf, ""
    for _ in range(repeats):
        ends: list[tuple[str, float]] = []
        took, _ = timing.timed(
            _ours,
            groups,
            base,
            _PATHS[0],
            lambda name, ends=ends: ends.append((name, time.perf_counter())),
        )
        if took.wall < fastest:
            fastest = took.wall
            began = [ends[-1][1] - took.wall, *(end for _, end in ends)]
            stages = ", ".join(
                f"{name} {1e3 * (end - start):.1f}"
                for start, (name, end) in zip(began, ends, strict=False)
            )
    print(f"{'':>11} in ms: {stages}", flush=True)


def _ours(
    groups: Sequence[rl.TrajectoryGroup],
    base: Sequence[Sequence[float | None]],
    path: Path,
    lap: Callable[[str], None] = lambda name: None,
) -> list[tinker.Datum]:
    batch = rl.trajectory_batch(groups)
    lap("trajectory_batch")
    of_trajectory = rl.group_advantages(batch)
    lap("group_advantages")
    advantages = rl.token_advantages(batch, of_trajectory)
    lap("token_advantages")
    if path.coef:
        base_logprobs = batch.column(base)
        lap("column")
        advantages, _ = rl.kl_shaped(
            batch, advantages, base_logprobs, coef=path.coef, gamma=path.gamma
        )
        lap("kl_shaped")
    data = rl.batch_data(batch, advantages)
    lap("batch_data")
    sdk_data = to_sdk_data(data)
    lap("to_sdk_data")
    return sdk_data


def _peer(cores: int) -> tuple[Callable[..., list[tinker.Datum]], Callable[[Work], list[Any]]]:
    """The same path in tinker-cookbook, and its records of the same episodes."""
    try:
        import torch
        from tinker_cookbook.completers import TokensWithLogprobs as PeerAction
        from tinker_cookbook.rl import data_processing, metrics, types
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}\n\n{__doc__[__doc__.index('Needs the extra') :]}") from error
    torch.set_num_threads(cores)

    class Answers:
        """Stands in for a sampling client and has the answers ready, in the order asked."""

        def __init__(self, base: Sequence[Sequence[float | None]]) -> None:
            self._base = iter(base)

        async def compute_logprobs_async(self, _: tinker.ModelInput) -> Sequence[float | None]:
            return next(self._base)

    def run(
        groups: list[Any], base: Sequence[Sequence[float | None]], path: Path
    ) -> list[tinker.Datum]:
        advantages = data_processing.compute_advantages(groups)
        data, _ = data_processing.assemble_training_data(groups, advantages)
        if path.coef:
            asyncio.run(metrics.incorporate_kl_penalty(data, Answers(base), path.coef, path.gamma))
        return data

    def transition(turn: Turn) -> types.Transition:
        return types.Transition(
            ob=tinker.ModelInput.from_ints(turn.prompt),
            ac=PeerAction(tokens=turn.action, maybe_logprobs=turn.logprobs),
            reward=0.0,
            episode_done=False,
            metrics=episodes.turn_metrics(turn),
        )

    def groups_of(work: Work) -> list[Any]:
        return [
            types.TrajectoryGroup(
                trajectories_G=[
                    types.Trajectory(
                        transitions=[transition(turn) for turn in episode.turns],
                        final_ob=tinker.ModelInput.empty(),
                    )
                    for episode in group
                ],
                final_rewards_G=[episode.reward for episode in group],
                metrics_G=[{} for _ in group],
            )
            for group in work.groups
        ]

    return run, groups_of


def _difference(ours: Sequence[tinker.Datum], theirs: Sequence[tinker.Datum]) -> float:
    """Between the advantages of trained tokens, as a share of the largest.

    Raises:
        ValueError: the two sides did not do the same work.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rows here and {len(theirs)} in tinker-cookbook")
    difference = largest = 0.0
    for row, (mine, peer) in enumerate(zip(ours, theirs, strict=True)):
        a = {name: column.to_numpy() for name, column in mine.loss_fn_inputs.items()}
        b = {name: column.to_numpy() for name, column in peer.loss_fn_inputs.items()}
        mask = b["mask"] > 0
        same = (
            mine.model_input.to_ints() == peer.model_input.to_ints()
            and np.array_equal(a["target_tokens"], b["target_tokens"])
            and np.array_equal(a["weights"], b["mask"])
            and np.array_equal(a["logprobs"][mask], b["logprobs"][mask])
            and not a["advantages"][~mask].any()
        )
        if not same:
            raise ValueError(f"row {row} differs from tinker-cookbook's")
        distances = np.abs(a["advantages"][mask] - b["advantages"][mask])
        difference = max(difference, distances.max(initial=0.0))
        largest = max(largest, np.abs(b["advantages"][mask]).max(initial=0.0))
    if not difference <= _TOLERANCE * largest:
        raise ValueError(f"advantages differ by {difference}, the largest is {largest}")
    return float(difference / largest)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", nargs="+", default=[f"{g}x16x{n}" for g in (64, 256) for n in (512, 1024)]
    )
    parser.add_argument("--turns", nargs="+", type=int, default=[1, 4])
    parser.add_argument(
        "--held", nargs="+", choices=["lists", "arrays"], default=["lists", "arrays"]
    )
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-repeats", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
