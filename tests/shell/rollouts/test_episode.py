import asyncio
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.errors import DataError
from cookbook_fx.rl import TrajectoryGroup, compute_trajectory_metrics, trajectory_batch
from cookbook_fx.runs import derived_seed
from shell.rollouts import (
    ContextOverflow,
    InitialObservationOverflow,
    ParseErrorPolicy,
    RolloutLimits,
    RolloutOptions,
    StepResult,
    TimeLimitExceeded,
    do_single_rollout,
)
from tests.scripted_rollouts import STOP, AlonePolicy, ScriptedEnv, hangs, raises


def rollout(env, policy=None, *, seed=None, parse_errors=None, **limits):
    options = RolloutOptions(limits=RolloutLimits(**limits), parse_errors=parse_errors)
    return asyncio.run(do_single_rollout(policy or AlonePolicy(), env, options=options, seed=seed))


def said(**metrics):
    """A step that says more than its script."""
    return lambda result: StepResult(
        result.reward, result.episode_done, result.next_observation, STOP, metrics=metrics
    )


def test_each_turn_is_recorded_as_it_was():
    policy = AlonePolicy()
    trajectory = rollout(ScriptedEnv(turns=3), policy, seed=7)
    assert [turn.reward for turn in trajectory.transitions] == [1, 1, 1]
    assert [turn.episode_done for turn in trajectory.transitions] == [False, False, True]
    seen = [5, 6]
    for turn, request in zip(trajectory.transitions, policy.requests, strict=True):
        assert turn.ob.tolist() == seen == list(request.prompt)
        assert request.stop == (2,)
        seen = [*seen, *turn.ac.tokens, 1]
    assert trajectory.final_ob.tolist() == seen
    assert trajectory.stop_reason is None


def test_the_environments_reason_is_the_trajectorys():
    metrics = {"stop/completed": 1.0, "stop/max_turns": 0.0}
    trajectory = rollout(ScriptedEnv(result=said(**metrics)))
    assert trajectory.stop_reason == "completed"
    assert trajectory.transitions[-1].metrics == metrics


def test_the_environment_hears_how_the_action_ended_and_what_is_allowed():
    env = ScriptedEnv()
    policy = ParseErrorPolicy(max_consecutive=2)
    rollout(env, tool_calls=7, parse_errors=policy)
    assert env.heard == [{"stop_reason": "stop", "max_tool_calls": 7, "parse_errors": policy}]


def test_actions_are_lists_of_integers_whatever_the_policy_gives():
    taken = []

    class Env(ScriptedEnv):
        async def step(self, action, *, extra=None):
            taken.append(action)
            return await super().step(action, extra=extra)

    class Policy(AlonePolicy):
        async def __call__(self, *args, **options):
            answer = await super().__call__(*args, **options)
            return type(answer)(
                tokens=np.array(answer.tokens), maybe_logprobs=np.array(answer.maybe_logprobs)
            )

    rollout(Env(), Policy())
    assert type(taken[0]) is list
    assert {type(token) for token in taken[0]} == {int}


@pytest.mark.parametrize(
    ("limits", "reason", "turns"),
    [
        ({"turns": 2}, "max_turns", 2),
        ({"trajectory_tokens": 12}, "max_tokens", None),
        ({"sampled_tokens": 6}, "max_sampled_tokens", None),
        ({"turns": 1, "sampled_tokens": 1, "trajectory_tokens": 3}, "max_tokens", 1),
    ],
)
def test_a_limit_ends_the_episode_and_is_its_reason(limits, reason, turns):
    trajectory = rollout(ScriptedEnv(turns=100), **limits)
    assert trajectory.stop_reason == reason
    last = trajectory.transitions[-1]
    assert last.episode_done
    assert last.metrics == {f"stop/{reason}": 1.0}
    assert not any(turn.episode_done for turn in trajectory.transitions[:-1])
    assert turns is None or len(trajectory.transitions) == turns


@settings(max_examples=60)
@given(
    turns=st.none() | st.integers(1, 6),
    trajectory_tokens=st.none() | st.integers(1, 30),
    sampled_tokens=st.none() | st.integers(1, 12),
    turn_tokens=st.none() | st.integers(1, 4),
    seed=st.integers(0, 2**40),
)
def test_no_limit_is_ever_passed(turns, trajectory_tokens, sampled_tokens, turn_tokens, seed):
    trajectory = rollout(
        ScriptedEnv(turns=8),
        seed=seed,
        turns=turns,
        trajectory_tokens=trajectory_tokens,
        sampled_tokens=sampled_tokens,
        turn_tokens=turn_tokens,
    )
    actions = [turn for turn in trajectory.transitions if len(turn.ac.tokens)]
    lengths = [len(turn.ac.tokens) for turn in actions]
    assert len(actions) <= min(8, turns or 8)
    assert sum(lengths) <= (sampled_tokens or math.inf)
    assert all(length <= (turn_tokens or 4) for length in lengths)
    whole = [len(turn.ob) + len(turn.ac.tokens) for turn in actions]
    assert all(length <= (trajectory_tokens or math.inf) for length in whole)
    assert (trajectory.stop_reason is None) == (len(actions) == 8)


def test_an_environments_own_reason_gives_way_to_the_limits():
    env = ScriptedEnv(turns=9, result=said(**{"stop/custom": 1.0, "x": 2}))
    last = rollout(env, turns=1).transitions[-1]
    assert last.metrics == {"stop/max_turns": 1.0, "x": 2}


@pytest.mark.parametrize("seed", [0, 5, 2**31, 2**70])
def test_the_same_seed_asks_the_same_again(seed):
    asked = []
    for _ in range(2):
        policy = AlonePolicy()
        rollout(ScriptedEnv(turns=4), policy, seed=seed)
        asked.append(policy.requests)
    assert asked[0] == asked[1]
    assert len({request.seed for request in asked[0]}) == 4


def test_seeds_of_turns_come_from_seed_member_and_turn():
    policy = AlonePolicy()
    rollout(ScriptedEnv(turns=2), policy, seed=5)
    expected = [derived_seed(5, 0, turn) for turn in (0, 1)]
    assert [request.seed for request in policy.requests] == expected


def test_without_a_seed_samples_are_left_to_chance():
    policy = AlonePolicy()
    rollout(ScriptedEnv(turns=2), policy)
    assert [request.seed for request in policy.requests] == [None, None]


def overflowing(**options):
    class Env(ScriptedEnv):
        async def initial_observation(self):
            return InitialObservationOverflow(**options)

    return Env()


def test_a_prompt_too_long_earns_its_reward_and_teaches_nothing():
    policy = AlonePolicy()
    overflow = overflowing(reward=-0.5, metrics={"x": 1}, logs={"why": "long"})
    trajectory = rollout(overflow, policy)
    assert policy.requests == []
    assert trajectory.stop_reason == "max_tokens"
    assert trajectory.transitions[0].metrics == {"x": 1, "stop/max_tokens": 1.0}
    assert trajectory.transitions[0].logs == {"why": "long"}
    group = TrajectoryGroup(
        trajectories_G=[trajectory, rollout(ScriptedEnv())],
        final_rewards_G=[0.0, 0.0],
        metrics_G=[{}, {}],
    )
    batch = trajectory_batch([group])
    assert batch.rewards.tolist() == [-0.5, 1.0]
    assert batch.row_trajectory.tolist() == [1]
    (report,) = compute_trajectory_metrics([group], [[]])
    assert (report.total_episodes, report.mean_total_reward) == (2, 0.25)


def test_an_overflow_may_say_why_itself():
    overflow = overflowing(reward=0.0, metrics={"stop/context_overflow": 1})
    assert rollout(overflow).stop_reason == "context_overflow"


@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_environment_that_hangs_ends_in_time_with_the_turns_so_far(at):
    trajectory = rollout(ScriptedEnv(turns=9, before=hangs(at=at)), rollout_seconds=0.2)
    assert trajectory.stop_reason == "rollout_timeout"
    assert trajectory.transitions[-1].metrics == {"stop/rollout_timeout": 1.0}
    assert trajectory.transitions[-1].episode_done
    assert sum(turn.reward for turn in trajectory.transitions) == max(at - 1, 0)


class HangingPolicy(AlonePolicy):
    async def __call__(self, prompt, stop, *, max_tokens=None, seed=None):
        if len(self.requests) == 1:
            await asyncio.Event().wait()
        return await super().__call__(prompt, stop, max_tokens=max_tokens, seed=seed)


def test_a_sampler_that_hangs_ends_in_time_with_the_turns_so_far():
    trajectory = rollout(ScriptedEnv(turns=9), HangingPolicy(), rollout_seconds=0.2)
    assert trajectory.stop_reason == "rollout_timeout"
    assert len(trajectory.transitions) == 1
    assert len(trajectory.transitions[0].ac.tokens)


def test_a_request_that_takes_too_long_is_an_error():
    with pytest.raises(TimeLimitExceeded, match=r"a request to the policy .* 0.1 .*sample_seconds"):
        rollout(ScriptedEnv(turns=9), HangingPolicy(), sample_seconds=0.1)


def test_a_time_out_of_the_environments_own_is_an_error_like_any_other():
    with pytest.raises(TimeoutError, match="mine"):
        rollout(ScriptedEnv(before=raises(TimeoutError("mine"))))
    with pytest.raises(TimeoutError, match="mine"):
        rollout(ScriptedEnv(before=raises(TimeoutError("mine"), at=0)))


def test_an_environment_that_will_not_be_cancelled_ends_after_its_turn():
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    env = ScriptedEnv(turns=9, before=lambda turn: stubborn() if turn == 2 else None)
    trajectory = rollout(env, rollout_seconds=0.2)
    assert trajectory.stop_reason == "rollout_timeout"
    assert len(trajectory.transitions) == 2


def test_a_context_that_is_full_ends_the_episode():
    class Policy(AlonePolicy):
        async def __call__(self, prompt, stop, **options):
            if len(prompt) > 8:
                raise ContextOverflow("full")
            return await super().__call__(prompt, stop, **options)

    trajectory = rollout(ScriptedEnv(turns=9), Policy())
    assert trajectory.stop_reason == "context_overflow"
    assert 1 <= len(trajectory.transitions) < 9
    alone = rollout(ScriptedEnv(prompt=[1] * 9), Policy())
    assert alone.stop_reason == "context_overflow"
    assert alone.final_ob.tolist() == [1] * 9


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda _: None, r"ScriptedEnv\.step must return a StepResult, got None"),
        (lambda _: (1.0, True), "must return a StepResult, got a tuple"),
        (lambda _: StepResult(None, True, [], []), "finite number as the reward, got None"),
        (lambda _: StepResult(math.nan, True, [], []), "finite number as the reward, got nan"),
        (lambda _: StepResult("1", True, [], []), "finite number as the reward, got '1'"),
        (lambda _: StepResult(1, True, None, []), "token ids as the observation.*got None"),
        (lambda _: StepResult(1, True, "text", []), "token ids as the observation.*got a str"),
        (lambda _: StepResult(1, True, [0.5], []), "integers in one dimension"),
        (lambda _: StepResult(1, True, [[1]], []), "integers in one dimension"),
        (lambda _: StepResult(1, True, [-1], []), "from 0 to 2147483647, got -1 to -1"),
        (lambda _: StepResult(1, True, [2**31], []), "from 0 to 2147483647"),
        (lambda _: StepResult(1, True, [], "stop"), "stop condition as a sequence.*'stop'"),
        (lambda _: StepResult(1, True, [], None), "stop condition as a sequence.*None"),
        (lambda _: StepResult(1, True, [], [], {"x": "1"}), "numbers as metrics, got '1' for 'x'"),
        (lambda _: StepResult(1, True, [], [], None), "metrics and logs as mappings, got None"),
        (lambda _: StepResult(1, True, [], [], {}, None), "metrics and logs as mappings"),
    ],
)
def test_what_a_step_may_not_return_is_told(result, message):
    with pytest.raises(DataError, match=message):
        rollout(ScriptedEnv(result=result))


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        (None, r"Env\.initial_observation must return an observation and a stop.*got None"),
        ([1, 2], "must return an observation and a stop condition.*got a list"),
        ((None, []), "token ids as the observation"),
        (InitialObservationOverflow(reward=math.inf), "finite number as the reward"),
        (InitialObservationOverflow(0.0, {"x": None}), "numbers as metrics"),
    ],
)
def test_what_a_beginning_may_not_be_is_told(initial, message):
    class Env(ScriptedEnv):
        async def initial_observation(self):
            return initial

    with pytest.raises(DataError, match=message):
        rollout(Env())


def test_a_policy_that_answers_otherwise_is_told():
    class Policy(AlonePolicy):
        async def __call__(self, *args, **options):
            return [1, 2]

    with pytest.raises(DataError, match=r"the policy Policy must answer.*got a list"):
        rollout(ScriptedEnv(), Policy())


def test_rewards_of_any_numeric_type_are_kept():
    for reward in (True, 1, np.float32(0.5), np.int64(2), np.bool_(True)):
        env = ScriptedEnv(result=lambda _, reward=reward: StepResult(reward, True, [], []))
        assert rollout(env).transitions[0].reward is reward
