"""The reinforcement-learning loop: one step in every mode, each group once, a crash changes
nothing."""

import threading
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.reports import EvaluationReport
from cookbook_fx.rl import Objective, data_digest, recorded_objective, training_batch
from cookbook_fx.supervised import LikelihoodReport
from shell.hub import load_tokenizer
from shell.stores import BatchesFile, RolloutsFile
from shell.training import KLReference, ModelChoice, RLCadence, SamplingChoice, Schedule
from shell.training.events import Advised, Evaluated, GroupRolledOut, RunBegan, Saved, StepDone
from shell.training.rl import RLData
from shell.training.rl_config import RLConfig
from tests.rl_runs import Problems, RLRunner, constant, lines, low_tokens, rows

TOTAL = 6
MODES = {
    "synchronous": {},
    "stream-minibatch": {"num_minibatches": 2},
    "asynchronous": {"max_steps_off_policy": 2},
    "asynchronous, streaming": {"max_steps_off_policy": 1, "num_minibatches": 3},
}


class Crash(Exception):
    """Stands for a process that dies."""


async def entropy(sampler, *, seed: int):
    """An evaluator that is a function of the weights alone."""
    scores = await sampler.score(np.arange(60, 80))
    likelihood = LikelihoodReport(
        num_sequences=1,
        num_tokens=20,
        num_loss_tokens=19,
        mean_nll=-float(scores[1:].mean()),
        bits_per_byte=None,
    )
    return [EvaluationReport(name="test", likelihood=likelihood)]


@pytest.fixture
def runner(engine, tiny_model_directory: Path) -> RLRunner:
    """2 epochs of 3 batches, the last of them smaller."""
    return RLRunner(
        endpoint=engine,
        config=RLConfig(
            model=ModelChoice(model=str(tiny_model_directory), lora_rank=4),
            schedule=Schedule(learning_rate=3e-2, lr_schedule="constant", num_epochs=2),
            cadence=RLCadence(eval_every=2, save_every=2),
            sampling=SamplingChoice(max_tokens=6),
            seed=5,
        ),
        data=RLData(
            train=Problems(count=8),
            evaluators=(entropy,),
            tokenizer=load_tokenizer(tiny_model_directory),
        ),
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict:
    """What the uninterrupted run gave, made by whichever test needs it first."""
    return {"folder": tmp_path_factory.mktemp("reference") / "run"}


@pytest.fixture
def exact(runner) -> RLRunner:
    """2 epochs of 3 batches of three groups, which are sampled in whatever company they meet."""
    return replace(runner, data=replace(runner.data, train=Problems(count=9, groups=3)))


@pytest.fixture
def uninterrupted(exact, weights, reference) -> dict:
    if "weights" not in reference:
        result = exact(reference["folder"])
        reference["weights"] = weights(result.checkpoint.state_path)
    return reference


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


def check_records(folder: Path, *, bound: int = 0, sizes: tuple[int, ...] = (3, 3, 2)) -> None:
    """Each group is rolled out once, within the bound, and trained on once, as it was recorded.

    `sizes` are the groups of each batch of an epoch.
    """
    groups = {
        (each.step, each.index): each
        for each in RolloutsFile(path=folder / "rollouts.jsonl").groups()
    }
    episodes = Counter(
        (line["step"], line["group"], line["member"]) for line in lines(folder, "rollouts.jsonl")
    )
    assert set(episodes.values()) == {1}
    assert len(groups) == sum(row["train/num_groups"] for row in rows(folder)[:TOTAL])
    for step, each in [(step, each) for (step, _), each in groups.items()]:
        assert step - bound <= each.sampler_step <= step
    trained = defaultdict(list)
    for batch in BatchesFile(path=folder / "batches.jsonl").batches():
        trained[batch.step] += batch.groups
        made = training_batch(
            [groups[batch.step, index].group for index in batch.groups],
            recorded_objective(batch),
            base_logprobs=batch.base_logprobs,
        )
        assert data_digest(made.data) == batch.digest
        assert [len(row) for row in batch.training_logprobs] == [d.length for d in made.data]
    assert {step: sorted(indices) for step, indices in trained.items()} == {
        step: list(range(sizes[step % 3])) for step in range(TOTAL)
    }


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_each_group_once_within_its_staleness(runner, tmp_path, mode):
    config = replace(runner.config, **MODES[mode])
    result = runner(tmp_path / "run", config=config)
    assert result.finished
    assert result.checkpoint.sampler_path.endswith("sampler_weights/final")
    written = rows(tmp_path / "run")
    assert [row["step"] for row in written] == list(range(TOTAL + 1))
    check_records(tmp_path / "run", bound=config.max_steps_off_policy)
    # Pacing begins as early as it may, so that from the first steps on staleness is the bound.
    assert [row["sampling_client/step_min"] for row in written[:TOTAL]] == [
        max(0, step - config.max_steps_off_policy) for step in range(TOTAL)
    ]


def test_each_epoch_has_each_problem_once_in_another_order(runner, tmp_path):
    runner(tmp_path / "run")
    groups = list(RolloutsFile(path=tmp_path / "run" / "rollouts.jsonl").groups())
    assert len({group.seed for group in groups}) == len(groups) == 16
    prompts = {
        (group.step, group.index): int(group.group.trajectories_G[0].transitions[0].ob[1])
        for group in groups
    }
    orders = [
        [prompts[place] for place in sorted(prompts) if place[0] // 3 == epoch] for epoch in (0, 1)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(60, 68))
    assert orders[0] != orders[1]


def test_metrics_have_upstreams_names(uninterrupted):
    written = rows(uninterrupted["folder"], without_time=False)
    names = {
        "progress/batch", "progress/done_frac", "optim/lr", "env/all/reward/total",
        "env/all/by_group/frac_mixed", "env/all/length", "optim/kl_sample_train_v1",
        "optim/kl_sample_train_v2", "optim/entropy", "sampling_client/step_mean",
        "time/sampling_time_mean", "time/total", "time/training", "rollout_errors/total",
        "optim/grad_norm",
    }  # fmt: skip
    for row in written[:TOTAL]:
        assert names <= set(row)
        assert ("test/nll" in row) == (row["step"] % 2 == 0)
        # On-policy, sampling and training weights differ by arithmetic alone.
        assert abs(row["optim/kl_sample_train_v1"]) < 1e-3
    assert [row["progress/done_frac"] for row in written[:TOTAL]] == [
        (step + 1) / TOTAL for step in range(TOTAL)
    ]
    assert written[TOTAL].keys() == {"step", "progress/batch", "progress/done_frac", "test/nll"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_reward_rises_in_every_mode(runner, tmp_path, mode):
    config = replace(
        runner.config,
        schedule=Schedule(learning_rate=2e-2, lr_schedule="constant", num_epochs=10),
        objective=Objective(truncate_ratios=2.0),
        **MODES[mode],
    )
    runner(tmp_path / "run", config=config, data=RLData(train=Problems(count=4, groups=4, size=8)))
    rewards = [row["env/all/reward/total"] for row in rows(tmp_path / "run")[:10]]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2


def test_an_evaluation_sees_the_weights_before_its_step(exact, tmp_path, uninterrupted):
    cadence = replace(exact.config.cadence, eval_every=1)
    events = []
    exact(tmp_path / "run", config=replace(exact.config, cadence=cadence), observe=events.append)
    often, seldom = rows(tmp_path / "run"), rows(uninterrupted["folder"])
    for step in (0, 2, 4, TOTAL):
        assert often[step]["test/nll"] == seldom[step]["test/nll"]
    assert len({row["test/nll"] for row in often}) == TOTAL + 1
    measured = {event.step: event.report for event in events if isinstance(event, Evaluated)}
    assert [measured[step].likelihood.mean_nll for step in range(TOTAL + 1)] == [
        row["test/nll"] for row in often
    ]


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (RunBegan, 1),
        (GroupRolledOut, 2),
        (StepDone, 1),
        (Saved, 1),
        (GroupRolledOut, 5),
        (StepDone, 4),
        (Evaluated, 4),
    ],
)
def test_a_crashed_run_continues_to_the_same_weights_bit_for_bit(
    exact, weights, tmp_path, uninterrupted, kind, count
):
    seen = []

    def crash(event) -> None:
        seen.extend([event] if isinstance(event, kind) else [])
        if len(seen) == count:
            raise Crash

    with pytest.raises(Crash):
        exact(tmp_path / "run", observe=crash)
    events = []
    result = exact(tmp_path / "run", observe=events.append)
    assert result.finished
    (start,) = [event.first_step for event in events if isinstance(event, RunBegan)]
    trained = [event.report.step.index for event in events if isinstance(event, StepDone)]
    assert trained == list(range(start, TOTAL))
    assert rows(tmp_path / "run") == rows(uninterrupted["folder"])
    check_records(tmp_path / "run", sizes=(3, 3, 3))
    assert same(weights(result.checkpoint.state_path), uninterrupted["weights"])


def test_a_run_asked_to_stop_saves_at_once_and_continues_to_the_same_weights(
    exact, weights, tmp_path, uninterrupted
):
    config = replace(exact.config, cadence=RLCadence(eval_every=2, save_every=None))
    stopped = exact(
        tmp_path / "run",
        config=config,
        stop_when=lambda event: isinstance(event, StepDone) and event.report.step.index == 1,
    )
    assert not stopped.finished
    assert stopped.checkpoint.next_step in (2, 3)
    done = [row["step"] for row in rows(tmp_path / "run")]
    assert done == list(range(stopped.checkpoint.next_step))
    result = exact(tmp_path / "run", config=config)
    assert rows(tmp_path / "run") == rows(uninterrupted["folder"])
    check_records(tmp_path / "run", sizes=(3, 3, 3))
    assert same(weights(result.checkpoint.state_path), uninterrupted["weights"])


def test_a_run_stopped_before_its_first_step_leaves_no_checkpoint(runner, tmp_path):
    stopped = runner(tmp_path / "run", stop_when=lambda event: isinstance(event, RunBegan))
    assert stopped == (None, False)


def test_a_finished_run_is_not_trained_again(exact, uninterrupted):
    events = []
    result = exact(uninterrupted["folder"], observe=events.append)
    assert result.finished
    assert events == []


def test_groups_on_the_disk_are_trained_on_and_not_rolled_out_again(runner, tmp_path):
    config = replace(runner.config, max_steps_off_policy=2)

    def crash(event) -> None:
        if isinstance(event, StepDone) and event.report.step.index == 3:
            raise Crash

    with pytest.raises(Crash):
        runner(tmp_path / "run", config=config, observe=crash)
    before = list(RolloutsFile(path=tmp_path / "run" / "rollouts.jsonl").groups())
    events = []
    runner(tmp_path / "run", config=config, observe=events.append)
    (start,) = [event.first_step for event in events if isinstance(event, RunBegan)]
    assert start == 2
    arrived = [event for event in events if isinstance(event, GroupRolledOut)]
    reused = {(e.recorded.step, e.recorded.index) for e in arrived if e.reused}
    assert reused == {
        (each.step, each.index) for each in before if each.step >= 2 and each.sampler_step <= 2
    }
    assert {2, 3} <= {step for step, _ in reused}
    check_records(tmp_path / "run", bound=2)


def test_tags_are_of_all_groups_where_constant_ones_teach_nothing(runner, tmp_path):
    data = RLData(
        train=Problems(count=6, behaviour_of=lambda number: constant if number % 2 else low_tokens)
    )
    objective = Objective(remove_constant_reward_groups=True)
    schedule = replace(runner.config.schedule, max_steps=2)
    # With this seed both steps have groups of both kinds.
    config = replace(runner.config, objective=objective, schedule=schedule, seed=1)
    runner(tmp_path / "run", config=config, data=data)
    for row in rows(tmp_path / "run")[:2]:
        mixed = row["env/kind0/total_episodes"] // 4
        assert row["env/all/total_episodes"] == 12
        assert row["env/all/by_group/frac_mixed"] == mixed / 3
        assert row["train/num_datums"] == 4 * mixed
        assert row["env/kind1/reward/total"] == 1.0
        assert row["env/kind0/reward/total"] < 1.0


def test_steps_that_teach_nothing_leave_the_weights_and_the_optimizer_alone(
    runner, weights, tmp_path
):
    data = RLData(train=Problems(count=8, behaviour_of=lambda number: constant))
    config = replace(runner.config, objective=Objective(remove_constant_reward_groups=True))
    result = runner(tmp_path / "run", config=config, data=data)
    assert result.finished
    for row in rows(tmp_path / "run")[:TOTAL]:
        assert row["train/num_datums"] == row["optim/num_updates"] == 0
        assert row["env/all/reward/total"] == 1.0
        assert "optim/grad_norm" not in row
    assert not (tmp_path / "run" / "batches.jsonl").exists()
    saved = [event for event in lines(tmp_path / "run", "rollouts.jsonl")]
    assert len(saved) == 16 * 4
    # A new LoRA's second matrices are 0 until the first update.
    assert sum(not leaf.any() for leaf in weights(result.checkpoint.state_path)) > 4


def test_a_kl_penalty_is_measured_and_pulls_towards_the_base_model(runner, tmp_path):
    distance = {}
    for coef in (0.0, 2.0):
        config = replace(
            runner.config,
            objective=Objective(kl_penalty_coef=coef, kl_discount_factor=0.5),
            kl_references=(KLReference(),),
            compute_post_kl=True,
        )
        runner(tmp_path / str(coef), config=config)
        written = rows(tmp_path / str(coef))[:TOTAL]
        distance[coef] = [row["kl_pre_post_v1"] for row in written]
        assert all(("kl_policy_base" in row) == (coef > 0) for row in written)
    penalized = [row["kl_policy_base"] for row in written]
    assert abs(penalized[0]) < 1e-3 < penalized[1]
    assert all(value > 0 for value in distance[0.0])
    check_records(tmp_path / "2.0")


def test_a_kl_penalty_needs_a_reference():
    with pytest.raises(ConfigurationError, match="kl_references"):
        RLConfig(objective=Objective(kl_penalty_coef=0.1))
    with pytest.raises(ConfigurationError, match="one of the two"):
        KLReference(base_model="a", load_checkpoint="tinker://b")


@pytest.mark.parametrize(
    ("divided", "updates"),
    [
        ({"num_substeps": 2}, [2, 2, 2]),
        ({"num_substeps": 5}, [3, 3, 2]),
        ({"num_substeps": 2, "num_minibatches": 5}, [2, 2, 2]),
    ],
)
def test_any_number_of_groups_is_divided_into_substeps_and_minibatches(
    runner, tmp_path, divided, updates
):
    config = replace(runner.config, **divided)
    runner(tmp_path / "run", config=config)
    written = rows(tmp_path / "run")[:TOTAL]
    assert [row["optim/num_updates"] for row in written] == updates * 2
    check_records(tmp_path / "run")
    passes = Counter(
        (line["step"], line["substep"]) for line in lines(tmp_path / "run", "batches.jsonl")
    )
    expected = {
        (step, substep): len(sizes)
        for step in range(TOTAL)
        for substep, sizes in enumerate(config.pacing.parts(3 if step % 3 < 2 else 2))
    }
    assert passes == expected


def test_unclipped_losses_off_policy_are_advised_against_once(runner, tmp_path):
    schedule = replace(runner.config.schedule, max_steps=2)
    given = {}
    for name, objective in {
        "unclipped": Objective(),
        "truncated": Objective(truncate_ratios=2.0),
        "ppo": Objective(loss="ppo"),
    }.items():
        events = []
        config = replace(
            runner.config, schedule=schedule, objective=objective, max_steps_off_policy=1
        )
        runner(tmp_path / name, config=config, observe=events.append)
        given[name] = [event.advice for event in events if isinstance(event, Advised)]
    (advice,) = given.pop("unclipped")
    assert "truncate_ratios" in advice
    assert list(given.values()) == [[], []]
    assert lines(tmp_path / "truncated", "batches.jsonl")[0]["objective"]["truncate_ratios"] == 2.0


def test_data_without_a_batch_is_refused(runner, tmp_path):
    with pytest.raises(ConfigurationError, match="batch"):
        runner(tmp_path / "run", data=RLData(train=Problems(count=0)))


def test_a_batch_without_groups_is_refused(runner, tmp_path):
    class Holey(Problems):
        def with_epoch(self, seed):
            return self

        def get_batch(self, index):
            return [] if index else super().get_batch(index)

    with pytest.raises(DataError, match="batch 1 of epoch 0 has no groups"):
        runner(tmp_path / "run", data=RLData(train=Holey(count=8)))


def test_groups_may_be_fewer_than_a_batch_asks_for(runner, tmp_path):
    data = RLData(train=Problems(count=2, groups=5))
    config = replace(runner.config, num_minibatches=4, num_substeps=3, max_steps_off_policy=1)
    runner(tmp_path / "run", config=config, data=data)
    assert [row["train/num_groups"] for row in rows(tmp_path / "run")[:2]] == [2, 2]


def test_a_data_set_is_asked_for_one_batch_at_a_time_in_order(runner, tmp_path):
    asking = threading.Lock()

    class Shared(Problems):
        """As one that draws from a generator which its batches share."""

        def with_epoch(self, seed):
            return self

        def get_batch(self, index):
            assert asking.acquire(blocking=False)
            time.sleep(0.05)
            asking.release()
            return super().get_batch(index)

    data = RLData(train=Shared(count=9))
    config = replace(
        runner.config,
        schedule=Schedule(learning_rate=1e-2, lr_schedule="constant"),
        max_steps_off_policy=2,
    )
    assert runner(tmp_path / "run", config=config, data=data).finished
    assert data.train.asked == [0, 1, 2]


def test_a_run_that_continues_with_less_staleness_rolls_out_anew_what_is_too_old(runner, tmp_path):
    def crash(event) -> None:
        if isinstance(event, StepDone) and event.report.step.index == 3:
            raise Crash

    stale, fresher = (replace(runner.config, max_steps_off_policy=steps) for steps in (2, 1))
    with pytest.raises(Crash):
        runner(tmp_path / "run", config=stale, observe=crash)
    runner(tmp_path / "run", config=fresher)
    groups = [
        group
        for group in RolloutsFile(path=tmp_path / "run" / "rollouts.jsonl").groups()
        if group.step >= 2
    ]
    assert len({(group.step, group.index) for group in groups}) == len(groups)
    assert all(group.step - group.sampler_step <= 1 for group in groups)
