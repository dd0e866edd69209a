"""What a step learns: the datums of an objective, their digest, and what the loss's clip stops."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from cookbook_fx import numerics
from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.rl import (
    Objective,
    Trajectory,
    TrajectoryGroup,
    Transition,
    data_digest,
    objective_batch,
    objective_diagnostics,
    training_batch,
    training_data,
)
from cookbook_fx.tokens import TokensWithLogprobs
from tests.rl_strategies import GROUPS


def group(*rewards: float) -> TrajectoryGroup:
    """An episode of one turn for each reward, with a token more each."""
    episodes = [
        Trajectory(
            transitions=[
                Transition(
                    ob=[1, 2],
                    ac=TokensWithLogprobs(
                        tokens=list(range(3, 4 + member)), maybe_logprobs=[-1.0] * (member + 1)
                    ),
                    reward=reward,
                    episode_done=True,
                )
            ],
            final_ob=[],
        )
        for member, reward in enumerate(rewards)
    ]
    return TrajectoryGroup(
        trajectories_G=episodes, final_rewards_G=[0] * len(rewards), metrics_G=[{}] * len(rewards)
    )


NOTHING = TrajectoryGroup(trajectories_G=[], final_rewards_G=[], metrics_G=[])


def first_advantages(data) -> list[float]:
    return [float(datum.advantages[-1]) for datum in data]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("group_centered", [0.75, -0.25, -0.25, -0.25]),
        ("leave_one_out", [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ("max_rl", [3.0, -1.0, -1.0, -1.0]),
    ],
)
def test_advantages_are_those_of_the_estimator_named(name, expected):
    made = training_batch([group(1, 0, 0, 0)], Objective(advantages=name))
    assert first_advantages(made.data) == pytest.approx(expected)
    assert made.mean_kl is None


def test_every_estimator_named_is_one_of_the_numerics():
    for name in ("group_centered", "group_normalized", "leave_one_out", "max_rl"):
        made = training_batch([group(3, 1)], Objective(advantages=name))
        table = getattr(numerics, name)(np.array([[3.0, 1.0]]), mask=np.ones((1, 2), bool))
        assert first_advantages(made.data) == pytest.approx(np.asarray(table)[0].tolist())


def test_constant_groups_are_left_out_where_asked():
    groups = [group(1, 1), group(1, 0), NOTHING]
    assert len(training_batch(groups, Objective()).data) == 4
    removing = Objective(remove_constant_reward_groups=True)
    made = training_batch(groups, removing)
    assert len(made.data) == 2
    assert made.batch.group_sizes.tolist() == [2, 2, 0]
    assert training_batch([group(1, 1), NOTHING], removing).data == []


def test_a_kl_penalty_is_added_and_needs_the_base_policys_word():
    groups, objective = [group(1, 0)], Objective(kl_penalty_coef=0.5)
    rows = objective_batch(groups, objective).sequences()
    assert [row.tolist() for row in rows] == [[1, 2, 3], [1, 2, 3, 4]]
    base = [[np.nan, -9, -1.0], [np.nan, -9, -1.0, -4.0]]
    made = training_batch(groups, objective, base_logprobs=base)
    # The distances are 0, 0 and 3 nats, 1 on average.
    assert made.mean_kl == pytest.approx(1.0)
    assert made.data[0].advantages.tolist() == pytest.approx([0, 0.5 + 0.5])
    assert made.data[1].advantages.tolist() == pytest.approx([0, -0.5 + 0.5, -0.5 - 1.0])
    with pytest.raises(DataError, match="base policy"):
        training_batch(groups, objective)


@given(GROUPS)
def test_a_batch_is_a_function_of_its_groups(groups):
    objective = Objective(remove_constant_reward_groups=True)
    made = training_batch(groups, objective)
    again = training_data(objective_batch(groups, objective), objective)
    assert data_digest(made.data) == data_digest(again.data)
    assert len(made.data) == len(made.batch.row_starts)


def test_a_digest_tells_any_two_batches_apart():
    ids = np.array([5, 6, 7], np.int32)
    ones = np.ones(3, np.float32)
    datum = Datum(tokens=ids, target_tokens=ids, weights=ones)
    variants = [
        [],
        [datum],
        [datum, datum],
        [replace(datum, weights=None)],
        [replace(datum, weights=None, logprobs=ones)],
        [replace(datum, weights=ones * np.float32(1 + 1e-7))],
        [replace(datum, target_tokens=ids[::-1])],
        [replace(datum, tokens=ids.astype(np.int64))],
        [
            Datum(tokens=ids[:1], target_tokens=ids[:1]),
            Datum(tokens=ids[1:], target_tokens=ids[1:]),
        ],
    ]
    assert len({data_digest(data) for data in variants}) == len(variants)
    # Only what the columns say counts, not how they lie in memory.
    strided = np.repeat(ids, 2)[::2]
    assert data_digest([replace(datum, tokens=strided)]) == data_digest([datum])


def test_truncated_ratios_have_the_gradient_of_truncated_importance_sampling():
    import jax
    import jax.numpy as jnp

    spec = Objective(truncate_ratios=2.0).loss_spec
    assert (spec.name, spec.settings) == (
        "cispo",
        {"clip_low_threshold": 0.0, "clip_high_threshold": 2.0},
    )
    q = jnp.array([-1.0, -1.0, -3.0, -3.0])
    p = jnp.array([-2.0, -0.5, -1.0, -1.0])
    advantages, weights = jnp.array([1.0, -1.0, 1.0, -1.0]), jnp.ones(4)

    def total(p):
        losses = numerics.cispo(
            p, sampling_logprobs=q, advantages=advantages, weights=weights, **spec.settings
        )
        return losses.sum()

    expected = -jnp.minimum(jnp.exp(p - q), 2.0) * advantages
    np.testing.assert_allclose(jax.grad(total)(p), expected, rtol=1e-6)


def test_which_losses_are_clipped():
    names = ("importance_sampling", "ppo", "cispo", "dro")
    assert [Objective(loss=name).is_clipped for name in names] == [False, True, True, False]
    assert Objective(truncate_ratios=2.0).is_clipped


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({"loss": "cross_entropy"}, "policy loss"),
        ({"loss": "pppo"}, "unknown loss"),
        ({"loss_config": {"beta": 0.1}}, "no setting"),
        ({"advantages": "mean"}, "group_centered"),
        ({"loss": "ppo", "truncate_ratios": 2.0}, "loss_config"),
        ({"truncate_ratios": 0.0}, "above 0"),
        ({"kl_penalty_coef": -1.0}, "kl_penalty_coef"),
        ({"kl_penalty_coef": float("nan")}, "kl_penalty_coef"),
        ({"kl_discount_factor": 1.5}, "kl_discount_factor"),
    ],
)
def test_choices_that_cannot_work_are_refused(choice, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        Objective(**choice)


def test_diagnostics_count_what_the_loss_itself_clips():
    ids = np.arange(4, dtype=np.int32)
    datum = Datum(
        tokens=ids,
        target_tokens=ids,
        weights=np.array([0, 1, 1, 1], np.float32),
        logprobs=np.full(4, -1.0, np.float32),
        advantages=np.array([0, 1, -1, 1], np.float32),
    )
    training = [np.log(np.array([0.5, 3.0, 3.0, 1.0], np.float32)) - 1]
    fractions = {
        name: float(objective_diagnostics([datum], training, objective).clip_fraction_high)
        for name, objective in {
            "importance_sampling": Objective(),
            "ppo": Objective(loss="ppo"),
            "cispo": Objective(truncate_ratios=2.0),
        }.items()
    }
    assert fractions == pytest.approx({"importance_sampling": 0, "ppo": 1 / 3, "cispo": 2 / 3})
    found = objective_diagnostics([datum], training, Objective())
    assert float(found.ratio_mean) == pytest.approx(7 / 3)


def test_diagnostics_refuse_log_probabilities_of_other_data():
    made = training_batch([group(1, 0)], Objective())
    with pytest.raises(DataError, match="got 1 rows"):
        objective_diagnostics(made.data, [np.zeros(2)], Objective())
