"""Rollouts: begun as soon as their weights may, on the disk before they are learnt from."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from cookbook_fx.distillation import GroupReference
from cookbook_fx.errors import DataError
from cookbook_fx.reports.logtree import Scope
from cookbook_fx.rl.records import RecordedGroup, group_records
from cookbook_fx.runs import RunPlan, Step, derived_seed
from shell.clients import Sampler
from shell.rollouts import (
    EnvGroupBuilder,
    RLDataset,
    TinkerTokenCompleter,
    TokenCompleter,
    do_group_rollout,
)
from shell.stores import RolloutHead, RolloutsFile, logtree
from shell.stores.tracing import span
from shell.training.background import Spawn, carried_out
from shell.training.beginnings import epoch_seed
from shell.training.events import GroupRolledOut, Observer
from shell.training.rl_config import RLConfig


class Arrivals:
    """The groups of one step, in the order in which they arrive."""

    def __init__(self) -> None:
        self._groups: list[RecordedGroup] = []
        self._expected: Sequence[GroupReference] | None = None
        self._changed = asyncio.Event()

    def expect(self, references: Sequence[GroupReference]) -> None:
        """Says how many there will be, and what each is to be judged by."""
        self._expected = references
        self._changed.set()

    def add(self, group: RecordedGroup) -> None:
        """Lets one arrive."""
        self._groups.append(group)
        self._changed.set()

    async def count(self) -> int:
        """How many there will be, once that is known."""
        return len(await self.references())

    async def references(self) -> Sequence[GroupReference]:
        """What each is to be judged by, by its index, once that is known."""
        while self._expected is None:
            self._changed.clear()
            await self._changed.wait()
        return self._expected

    async def first(self, count: int) -> list[RecordedGroup]:
        """The first so many, once they are there."""
        while len(self._groups) < count:
            self._changed.clear()
            await self._changed.wait()
        return self._groups[:count]


class Pipeline:
    """The rollouts of a run.

    Args:
        spawn: starts a task of the run.
        config: of the run.
        plan: of the run.
        data: where the groups come from.
        file: where they are written when they are done.
        decode: makes text of tokens for the file; None writes none.
        recorded: groups that are done already; they are not rolled out again.
        first_step: the first step to roll out for.
        observe: told of progress.
        logtree_path: where a logtree of a name is written.
    """

    def __init__(
        self,
        *,
        spawn: Spawn,
        config: RLConfig,
        plan: RunPlan,
        data: RLDataset,
        file: RolloutsFile,
        decode: Callable[[Sequence[int]], str] | None,
        recorded: Iterable[RecordedGroup],
        first_step: int,
        observe: Observer,
        logtree_path: Callable[[str], Path],
    ) -> None:
        self._logtree = logtree_path
        self._spawn = spawn
        self._config = config
        self._plan = plan
        self._data = data
        self._file = file
        self._decode = decode
        self._recorded = {(group.step, group.index): group for group in recorded}
        self._begun = first_step
        self._observe = observe
        self._arrivals: defaultdict[int, Arrivals] = defaultdict(Arrivals)
        self._notes: defaultdict[int, dict[int, Scope]] = defaultdict(dict)
        self._of_epoch = lru_cache(maxsize=2)(self._in_order_of)
        # A data set is asked for one batch at a time, and earlier steps sample first.
        self._one_step = asyncio.Lock()

    def arrivals(self, step: int) -> Arrivals:
        """Where the groups of a step arrive, begun or not."""
        return self._arrivals[step]

    def forget(self, step: int) -> None:
        """Lets go of the groups of a step that has learnt from them."""
        self._arrivals.pop(step, None)
        self._notes.pop(step, None)

    def notes(self, step: int) -> Mapping[int, Scope]:
        """What the environments of a step have logged, by group, as far as it is told of."""
        return self._notes.get(step, {})

    def begin(self, *, version: int, sampler: Sampler) -> None:
        """Begins all rollouts that may begin now that these weights exist.

        Args:
            version: steps that the weights have in them.
            sampler: the weights.
        """
        steps = self._config.pacing.may_begin(
            version=version, begun=self._begun, total_steps=self._plan.total_steps
        )
        choice = self._config.sampling
        policy = TinkerTokenCompleter(
            sampler,
            max_tokens=choice.max_tokens,
            temperature=choice.temperature,
            top_k=choice.top_k,
            top_p=choice.top_p,
            context_window=choice.context_window,
        )
        self._begun = steps.stop
        for step in steps:
            self._spawn(self._roll_out(self._plan.step(step), version=version, policy=policy))

    async def _roll_out(self, step: Step, *, version: int, policy: TokenCompleter) -> None:
        """Starts a task for each group of a step."""
        async with self._one_step:
            with span("get_batch", step=step.index):
                builders = await asyncio.to_thread(self._builders, step)
            references = await asyncio.to_thread(self._references, builders)
            self.arrivals(step.index).expect(references)
            for index, builder in enumerate(builders):
                recorded = self._recorded.pop((step.index, index), None)
                if recorded is not None:
                    self._arrived(recorded, num_groups=len(builders), reused=True)
                    continue
                self._spawn(
                    self._group(
                        builder,
                        policy,
                        step=step.index,
                        index=index,
                        version=version,
                        num_groups=len(builders),
                    )
                )

    async def _group(
        self,
        builder: EnvGroupBuilder,
        policy: TokenCompleter,
        *,
        step: int,
        index: int,
        version: int,
        num_groups: int,
    ) -> None:
        seed = group_seed(self._config.seed, step, index)
        with (
            span("group", step=step, group=index, sampler_step=version) as rollout,
            self._noting(step, index),
        ):
            group = await do_group_rollout(builder, policy, options=self._config.rollout, seed=seed)
        done = RecordedGroup(
            step=step,
            index=index,
            sampler_step=version,
            tags=tuple(builder.logging_tags()),
            seed=seed,
            seconds=rollout.seconds,
            group=group,
            texts=(),
        )
        await carried_out(self._write, done)
        self._arrived(done, num_groups=num_groups, reused=False)

    @contextmanager
    def _noting(self, step: int, index: int) -> Iterator[None]:
        """Keeps what a group's environments log, where the group is told of.

        Where the group fails and so ends the run, it is written at once.
        """
        cadence = self._config.cadence
        if not cadence.logs(step) or index >= cadence.num_groups_to_log:
            with logtree.scope_disable():
                yield
            return
        tree = logtree.Tree(f"Group {index} of step {step}")
        try:
            with tree.active():
                yield
        except Exception:
            tree.write(self._logtree(f"step_{step:06d}_group_{index}_failed"))
            raise
        self._notes[step][index] = tree.scope

    def _arrived(self, group: RecordedGroup, *, num_groups: int, reused: bool) -> None:
        self.arrivals(group.step).add(group)
        self._observe(GroupRolledOut(recorded=group, num_groups=num_groups, reused=reused))

    def _write(self, done: RecordedGroup) -> None:
        self._file.append(
            group_records(
                done.group,
                step=done.step,
                group_index=done.index,
                sampler_step=done.sampler_step,
                tags=done.tags,
                seed=done.seed,
                seconds=done.seconds,
                texts=self._decode,
            )
        )

    def _builders(self, step: Step) -> Sequence[EnvGroupBuilder]:
        builders = self._of_epoch(step.epoch).get_batch(step.batch)
        if not builders:
            raise DataError(
                f"batch {step.batch} of epoch {step.epoch} has no groups; every batch that the "
                "length of the data counts needs at least one"
            )
        return builders

    def _references(self, builders: Sequence[EnvGroupBuilder]) -> list[GroupReference]:
        return [builder.reference() for builder in builders]

    def _in_order_of(self, epoch: int) -> RLDataset:
        return self._data.with_epoch(epoch_seed(self._config.seed, epoch))


def group_seed(seed: int, step: int, group: int) -> int:
    """What a group samples with; unrelated for different runs, steps and groups."""
    return derived_seed(seed, step, group)


def reusable(
    file: RolloutsFile, *, next_step: int, max_steps_off_policy: int
) -> list[RecordedGroup]:
    """The groups on the disk that a run which continues need not roll out again.

    They are of steps still to do, and were begun with weights no newer than those it continues
    from, and no staler than the run allows now. What is of such steps and of no more use is dropped
    from the file: groups begun with weights that are to be made once more or that have become too
    old, and those that failed as a whole, which deserve another try.

    Raises:
        DataError: the file is damaged elsewhere than at its end.
        StorageError: the file cannot be replaced; it is unchanged.
    """

    def stays(head: RolloutHead) -> bool:
        is_of_use = head.step - max_steps_off_policy <= head.sampler_step <= next_step
        return head.step < next_step or is_of_use

    file.keep(stays)
    steps = range(next_step, next_step + max_steps_off_policy + 1)
    groups = list(file.groups(steps=steps))
    failed = {(group.step, group.index) for group in groups if not group.group.trajectories_G}
    if failed:
        file.keep(lambda head: (head.step, head.group) not in failed)
    return [group for group in groups if (group.step, group.index) not in failed]
