import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.runs import derived_seed
from shell.rollouts import (
    ContextOverflow,
    FailFast,
    InitialObservationOverflow,
    MinViableGroup,
    RetryOnFailure,
    RolloutLimits,
    RolloutOptions,
    do_batch_rollout,
    do_group_rollout,
)
from tests.scripted_rollouts import (
    AlonePolicy,
    GroupPolicy,
    ScriptedEnv,
    ScriptedGroup,
    group_of,
    hangs,
    raises,
)


def rollout(builder, policy=None, *, strategy=None, seed=None, **limits):
    options = RolloutOptions(strategy=strategy or FailFast(), limits=RolloutLimits(**limits))
    playing = do_group_rollout(builder, policy or AlonePolicy(), options=options, seed=seed)
    return asyncio.run(playing)


def first_attempt(*befores, then=None):
    """A group whose environments do these things first, and in later attempts nothing."""
    return ScriptedGroup(
        [
            lambda: [ScriptedEnv(before=before) for before in befores],
            lambda: [ScriptedEnv(before=then) for _ in befores],
        ]
    )


class Broken(Exception):
    pass


def tokens_of(group):
    return [
        [(turn.ob.tolist(), list(turn.ac.tokens)) for turn in trajectory.transitions]
        for trajectory in group.trajectories_G
    ]


def test_a_group_comes_back_whole_graded_and_cleaned_up():
    builder = group_of(3, turns=2)
    group = rollout(builder)
    assert [len(trajectory.transitions) for trajectory in group.trajectories_G] == [2, 2, 2]
    assert group.get_total_rewards() == [2.25] * 3
    assert list(group.metrics_G) == [{"graded": 1}] * 3
    assert group.rollout_errors == ()
    assert (builder.made, builder.cleaned) == (1, 1)
    trajectories, envs = builder.graded[0]
    assert trajectories == list(group.trajectories_G)
    assert [env.taken for env in envs] == [2, 2, 2]


def test_equal_beginnings_are_asked_for_once():
    policy = GroupPolicy()
    rollout(group_of(4, turns=2), policy, seed=9, turn_tokens=3)
    first, *later = policy.requests
    assert first == ((5, 6), (2,), 3, 9, 4)
    assert len(later) == 4
    assert all(request.num_samples is None for request in later)
    derived = [derived_seed(9, i, 1) for i in range(4)]
    assert sorted(request.seed for request in later) == sorted(derived)


@pytest.mark.parametrize(
    "envs",
    [
        lambda: [ScriptedEnv(), ScriptedEnv(prompt=[5, 7])],
        lambda: [ScriptedEnv(), ScriptedEnv(prompt=[5])],
        lambda: [ScriptedEnv()],
    ],
)
def test_other_beginnings_are_asked_for_one_by_one(envs):
    policy = GroupPolicy()
    rollout(ScriptedGroup([envs]), policy, seed=9)
    assert all(request.num_samples is None for request in policy.requests)
    assert len({request.seed for request in policy.requests}) == len(policy.requests)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**40),
    count=st.integers(1, 4),
    turns=st.integers(1, 3),
    failing=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=2),
    kind=st.sampled_from([AlonePolicy, GroupPolicy]),
)
def test_the_same_seed_asks_the_same_again(seed, count, turns, failing, kind):
    """Also where episodes fail and are played again."""

    def envs():
        befores = {member: raises(Broken(), at=at) for member, at in sorted(failing)}
        return [ScriptedEnv(turns=turns, before=befores.get(member)) for member in range(count)]

    def played():
        policy = kind()
        again = lambda: [ScriptedEnv(turns=turns) for _ in range(count)]  # noqa: E731
        group = rollout(ScriptedGroup([envs, again]), policy, strategy=RetryOnFailure(), seed=seed)
        return tokens_of(group), sorted(policy.requests, key=repr)

    first, second = played(), played()
    assert first == second
    assert len(first[0]) == count


def test_a_repeated_episode_does_not_ask_the_same():
    policy = AlonePolicy()
    rollout(first_attempt(raises(Broken())), policy, strategy=RetryOnFailure(), seed=3)
    assert len(policy.requests) == 2
    assert policy.requests[0].seed != policy.requests[1].seed


def test_a_repeated_episode_does_not_get_the_shared_answer_again():
    policy = GroupPolicy()
    rollout(first_attempt(None, raises(Broken())), policy, strategy=RetryOnFailure(), seed=3)
    shared, own = policy.requests
    assert (shared.num_samples, own.num_samples) == (2, None)
    assert own.prompt == shared.prompt


def test_a_repeated_episode_has_as_much_time():
    async def late(error) -> None:
        await asyncio.sleep(0.6)
        if error is not None:
            raise error

    builder = first_attempt(
        lambda turn: late(Broken()) if turn == 1 else None,
        then=lambda turn: late(None) if turn == 1 else None,
    )
    group = rollout(builder, strategy=RetryOnFailure(), rollout_seconds=1.0)
    assert [trajectory.stop_reason for trajectory in group.trajectories_G] == [None]
    assert len(group.rollout_errors) == 1


@pytest.mark.parametrize("at", [0, 1])
def test_fail_fast_raises_what_was_raised_and_says_where(at):
    builder = ScriptedGroup(
        [
            lambda: [
                ScriptedEnv(before=hangs(at=at)),
                ScriptedEnv(before=raises(Broken("no network"), at=at)),
                ScriptedEnv(before=hangs(at=at)),
            ]
        ]
    )
    with pytest.raises(Broken, match="no network") as raised:
        rollout(builder)
    assert "episode 1 of 3 of ScriptedGroup" in " ".join(raised.value.__notes__)
    assert builder.cleaned == 1


def test_an_error_that_is_a_group_stays_one():
    inner = ExceptionGroup("mine", [Broken(), Broken()])
    with pytest.raises(ExceptionGroup, match="mine") as raised:
        rollout(first_attempt(raises(inner), None))
    assert raised.value is inner


def test_a_failed_episode_is_played_again_in_a_new_environment():
    builder = first_attempt(None, raises(Broken("once")), None)
    group = rollout(builder, strategy=RetryOnFailure())
    assert len(group.trajectories_G) == 3
    assert [(error.error_type, error.error_message) for error in group.rollout_errors] == [
        ("Broken", "once")
    ]
    assert (builder.made, builder.cleaned) == (2, 1)


@pytest.mark.parametrize("at", [0, 1])
def test_a_group_that_keeps_failing_is_given_up_with_all_its_errors(at):
    builder = ScriptedGroup(
        [
            lambda: [
                ScriptedEnv(before=raises(Broken(), at=at)),
                ScriptedEnv(before=hangs(at=1)),
            ]
        ]
    )
    group = rollout(builder, strategy=RetryOnFailure(max_retries=2))
    assert group.trajectories_G == ()
    assert [error.error_type for error in group.rollout_errors] == ["Broken"] * 3
    assert builder.cleaned == 1
    assert builder.graded == []


def test_a_group_may_lose_some_of_its_episodes():
    builder = first_attempt(None, raises(Broken()), None, None)
    group = rollout(builder, strategy=MinViableGroup())
    assert len(group.trajectories_G) == len(group.final_rewards_G) == 3
    assert len(group.rollout_errors) == 1
    assert builder.made == 1
    trajectories, envs = builder.graded[0]
    assert len(trajectories) == len(envs) == 3


def test_a_group_that_would_be_too_small_is_filled_up():
    builder = first_attempt(raises(Broken()), raises(Broken(), at=0), None, None)
    group = rollout(builder, strategy=MinViableGroup())
    assert len(group.trajectories_G) == 3
    assert len(group.rollout_errors) == 2


def test_a_repetition_may_fail_at_making_environments():
    class Builder(ScriptedGroup):
        async def make_envs(self):
            if self.made == 1:
                self.made += 1
                raise Broken("no sandbox")
            return await super().make_envs()

    builder = Builder(first_attempt(raises(Broken()), None).attempts)
    group = rollout(builder, strategy=RetryOnFailure())
    assert len(group.trajectories_G) == 2
    assert len(group.rollout_errors) == 2


class FailingMany(GroupPolicy):
    async def many(self, *args, **options):
        await super().many(*args, **options)
        raise Broken("too many")


def test_first_answers_that_fail_together_are_asked_for_one_by_one():
    policy = FailingMany()
    group = rollout(group_of(4), policy, strategy=RetryOnFailure(max_retries=1), seed=1)
    assert len(group.trajectories_G) == 4
    assert [error.error_message for error in group.rollout_errors] == ["too many"]
    assert len(policy.requests) == 5


def test_first_answers_that_fail_together_end_a_group_that_may_not_repeat():
    for strategy in (RetryOnFailure(max_retries=0), MinViableGroup(max_retries=0)):
        group = rollout(group_of(4), FailingMany(), strategy=strategy)
        assert group.trajectories_G == ()
    with pytest.raises(Broken, match="too many") as raised:
        rollout(group_of(2), FailingMany())
    assert "first answers of ScriptedGroup" in " ".join(raised.value.__notes__)


def test_first_answers_that_are_too_few_are_told():
    class Few(GroupPolicy):
        async def many(self, *args, **options):
            return (await super().many(*args, **options))[1:]

    with pytest.raises(DataError, match="the policy Few was asked for 3 answers and gave 2"):
        rollout(group_of(3), Few())


def test_first_answers_that_hang_time_out_every_episode():
    class Hanging(GroupPolicy):
        async def many(self, *args, **options):
            await asyncio.Event().wait()

    policy = Hanging()
    group = rollout(group_of(3), policy, rollout_seconds=0.2)
    assert policy.requests == []
    assert [trajectory.stop_reason for trajectory in group.trajectories_G] == [
        "rollout_timeout"
    ] * 3


def test_a_full_context_and_an_empty_budget_end_every_episode():
    class Full(GroupPolicy):
        async def many(self, *args, **options):
            raise ContextOverflow("full")

        async def __call__(self, *args, **options):
            raise ContextOverflow("full")

    full = rollout(group_of(2), Full())
    assert [each.stop_reason for each in full.trajectories_G] == ["context_overflow"] * 2
    policy = GroupPolicy()
    spent = rollout(group_of(2), policy, trajectory_tokens=3)
    assert [each.stop_reason for each in spent.trajectories_G] == ["max_tokens"] * 2
    assert policy.requests == []


def test_an_overflow_counts_in_its_group_and_the_others_share_their_request():
    class Overflowing(ScriptedEnv):
        async def initial_observation(self):
            return InitialObservationOverflow(-1.0)

    policy = GroupPolicy()
    builder = ScriptedGroup([lambda: [ScriptedEnv(), Overflowing(), ScriptedEnv()]])
    group = rollout(builder, policy)
    assert group.get_total_rewards() == [1.25, -0.75, 1.25]
    assert [request.num_samples for request in policy.requests] == [2]


def test_one_hanging_environment_costs_only_itself():
    builder = first_attempt(hangs(at=0), hangs(at=1), None)
    group = rollout(builder, rollout_seconds=0.2)
    reasons = [trajectory.stop_reason for trajectory in group.trajectories_G]
    assert reasons == ["rollout_timeout", "rollout_timeout", None]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (list, r"ScriptedGroup\.make_envs must return at least one environment, got none"),
        (lambda: None, "must return at least one environment, got None"),
        (lambda: [None], "must return instances of Env, got None"),
    ],
)
def test_a_group_without_environments_is_told(made, message):
    builder = ScriptedGroup([made])
    with pytest.raises(DataError, match=message):
        rollout(builder)
    assert builder.cleaned == 1
    group = rollout(builder, strategy=RetryOnFailure())
    assert group.trajectories_G == ()
    assert [error.error_type for error in group.rollout_errors] == ["DataError"]


def test_a_group_that_changes_its_size_is_told():
    builder = ScriptedGroup(
        [lambda: [ScriptedEnv(), ScriptedEnv(before=raises(Broken()))], lambda: [ScriptedEnv()]]
    )
    group = rollout(builder, strategy=RetryOnFailure(max_retries=1))
    assert "as many environments each time, got 2 and then 1" in (
        group.rollout_errors[-1].error_message
    )


@pytest.mark.parametrize("strategy", [FailFast(), RetryOnFailure()])
@pytest.mark.parametrize(
    ("rewards", "error", "message"),
    [
        (lambda group: [(0.0, {})], DataError, "for each of 2 episodes, got 1"),
        (lambda group: None, DataError, "for each of 2 episodes, got NoneType"),
        (lambda group: [0.0, 1.0], DataError, "pairs of reward and metrics, got 0.0"),
        (lambda group: [(None, {})] * 2, DataError, "finite number as the reward, got None"),
        (lambda group: [(0.0, None)] * 2, DataError, "metrics and logs as mappings, got None"),
        (lambda group: 1 / 0, ZeroDivisionError, "division by zero"),
    ],
)
def test_a_grader_that_fails_is_told(strategy, rewards, error, message):
    builder = group_of(2)
    builder.rewards = rewards
    if strategy == FailFast():
        with pytest.raises(error, match=message) as raised:
            rollout(builder, strategy=strategy)
        assert "rewarding ScriptedGroup" in " ".join(raised.value.__notes__)
    else:
        group = rollout(builder, strategy=strategy)
        assert group.trajectories_G == ()
        assert message in group.rollout_errors[0].error_message
    assert builder.cleaned == 1


def test_making_environments_and_cleaning_up_may_not_hang():
    class Hanging(ScriptedGroup):
        async def make_envs(self):
            await asyncio.Event().wait()

        async def cleanup(self):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match=r"Hanging\.make_envs took longer than 0.1") as raised:
        rollout(Hanging([]), rollout_seconds=0.1)
    assert "cleanup failed as well" in " ".join(raised.value.__notes__)


def test_a_cleanup_that_fails_ends_the_run_or_is_counted():
    builder = group_of(2)
    builder.cleanup_error = Broken("left over")
    with pytest.raises(Broken, match="left over") as raised:
        rollout(builder)
    assert "cleaning up ScriptedGroup" in " ".join(raised.value.__notes__)
    group = rollout(builder, strategy=RetryOnFailure())
    assert len(group.trajectories_G) == 2
    assert [error.error_type for error in group.rollout_errors] == ["Broken"]


def test_a_cleanup_that_fails_after_an_error_does_not_hide_it():
    builder = first_attempt(raises(Broken("first")))
    builder.cleanup_error = OSError("second")
    with pytest.raises(Broken, match="first") as raised:
        rollout(builder)
    assert "second" in " ".join(raised.value.__notes__)


@pytest.mark.parametrize("strategy", [FailFast(), RetryOnFailure(), MinViableGroup()])
@pytest.mark.parametrize("at", [0, 1])
def test_cancelling_ends_all_and_cleans_up(strategy, at):
    builder = first_attempt(hangs(at=at), None, hangs(at=at))

    async def cancelled() -> None:
        options = RolloutOptions(strategy=strategy)
        task = asyncio.create_task(do_group_rollout(builder, AlonePolicy(), options=options))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(cancelled())
    assert builder.cleaned == 1


def test_cancelling_counts_while_a_failed_group_still_ends():
    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(10)

    async def fail_soon() -> None:
        await asyncio.sleep(0.05)
        raise Broken

    builder = first_attempt(
        lambda turn: fail_soon() if turn == 1 else None,
        lambda turn: slow_to_end() if turn == 1 else None,
    )

    async def cancelled() -> None:
        options = RolloutOptions(strategy=RetryOnFailure(max_retries=0))
        task = asyncio.create_task(do_group_rollout(builder, AlonePolicy(), options=options))
        await asyncio.sleep(0.1)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert builder.cleaned == 1


def test_what_makes_another_error_of_being_cancelled_is_not_played_again():
    async def convert() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise Broken("converted") from error

    builder = first_attempt(lambda turn: convert() if turn == 1 else None)

    async def cancelled() -> None:
        options = RolloutOptions(strategy=RetryOnFailure())
        task = asyncio.create_task(do_group_rollout(builder, AlonePolicy(), options=options))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert builder.made == 1


def test_what_swallows_being_cancelled_ends_all_the_same():
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    envs = [ScriptedEnv(turns=9, before=lambda turn: stubborn() if turn == 1 else None)]
    builder = ScriptedGroup([lambda: envs])

    async def cancelled() -> None:
        task = asyncio.create_task(do_group_rollout(builder, AlonePolicy()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert envs[0].taken == 1
    assert builder.cleaned == 1


def test_a_cancellation_from_within_is_a_failure_and_not_lost():
    builder = first_attempt(None, raises(asyncio.CancelledError()))
    group = rollout(builder, strategy=RetryOnFailure())
    assert len(group.trajectories_G) == 2
    assert [error.error_type for error in group.rollout_errors] == ["CancelledWithin"]


def test_a_batch_comes_back_in_order_however_long_each_takes():
    builders = [group_of(2, turns=3 - index, prompt=[index + 3]) for index in range(3)]
    groups = asyncio.run(do_batch_rollout(builders, AlonePolicy(), seeds=[1, 2, 3]))
    turns = [len(group.trajectories_G[0].transitions) for group in groups]
    assert turns == [3, 2, 1]
    alone = asyncio.run(do_group_rollout(group_of(2, turns=2, prompt=[4]), AlonePolicy(), seed=2))
    assert tokens_of(groups[1]) == tokens_of(alone)


@pytest.mark.parametrize("concurrency", [1, 2, None])
def test_no_more_groups_at_once_than_allowed(concurrency):
    under_way, most = set(), []

    class Builder(ScriptedGroup):
        async def make_envs(self):
            under_way.add(id(self))
            most.append(len(under_way))
            return await super().make_envs()

        async def cleanup(self):
            await super().cleanup()
            under_way.discard(id(self))

    builders = [Builder([lambda: [ScriptedEnv(turns=2)]]) for _ in range(5)]
    groups = asyncio.run(do_batch_rollout(builders, AlonePolicy(), concurrency=concurrency))
    assert len(groups) == 5
    assert max(most) == (concurrency or 5)


def test_a_failing_group_ends_the_batch_and_all_are_cleaned_up():
    builders = [
        first_attempt(hangs()),
        first_attempt(raises(Broken("here"))),
        first_attempt(hangs(at=0)),
    ]
    with pytest.raises(Broken, match="here") as raised:
        asyncio.run(do_batch_rollout(builders, AlonePolicy()))
    assert "in group 1 of the batch" in raised.value.__notes__
    assert [builder.cleaned for builder in builders] == [1, 1, 1]


def test_a_batch_that_cannot_be_is_refused():
    with pytest.raises(ConfigurationError, match="got 1 seeds for 2 groups"):
        asyncio.run(do_batch_rollout([group_of(1)] * 2, AlonePolicy(), seeds=[1]))
    with pytest.raises(ConfigurationError, match="`concurrency` must be at least 1, got 0"):
        asyncio.run(do_batch_rollout([], AlonePolicy(), concurrency=0))
    assert asyncio.run(do_batch_rollout([], AlonePolicy())) == []
