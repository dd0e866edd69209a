"""A batch made again: the same, or where it differs first; what other objectives make of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx import numerics
from cookbook_fx.errors import DataError
from cookbook_fx.rl import Objective, batch_record, group_records, groups_of, training_batch
from cookbook_fx.rl.replay import (
    EpisodeIndex,
    compare_objectives,
    episode_data,
    objective_figures,
    recorded_training_logprobs,
    remade_batch,
    replay_batch,
    trajectory_advantages,
)
from tests.rl_strategies import GROUPS, episode, group_of

few = settings(max_examples=20)
OBJECTIVES = [
    Objective(),
    Objective(truncate_ratios=1.05),
    Objective(advantages="group_normalized", loss="ppo"),
    Objective(advantages="leave_one_out", loss="dro"),
    Objective(loss="gspo", loss_config={"clip_low_threshold": 0.97, "clip_high_threshold": 1.02}),
    Objective(loss="cispo", kl_penalty_coef=0.2, kl_discount_factor=0.5),
]


def recorded(groups) -> dict:
    """The groups as they come back from their records, by index."""
    return {
        index: found
        for index, group in enumerate(groups)
        for found in groups_of(group_records(group, step=3, group_index=index, sampler_step=3))
    }


def sent(groups, objective: Objective, *, indices=None, **fields):
    """The record of a batch of groups, at log-probabilities that vary."""
    rng = np.random.default_rng(0)
    plain = training_batch(groups, replace(objective, kl_penalty_coef=0.0))
    base = [rng.normal(-1, 0.2, len(row)).astype(np.float32) for row in plain.batch.sequences()]
    data = training_batch(groups, objective, base_logprobs=base).data
    training = [
        np.asarray(datum.logprobs) + rng.normal(0, 0.1, datum.length).astype(np.float32)
        for datum in data
    ]
    return batch_record(
        data, objective, step=3, substep=0, minibatch=0, learning_rate=1e-4,
        groups=range(len(groups)) if indices is None else indices,
        base_logprobs=base if objective.kl_penalty_coef else None,
        **{"training_logprobs": training} | fields,
    )  # fmt: skip


def example():
    """Two groups; the first episode of the second has two rows, and a third group is empty."""
    return [
        group_of(episode(([1, 2], [3, 4]), reward=1), episode(([1, 2], [5]), reward=0)),
        group_of(
            episode(([1, 2], [3, 4]), ([7], [8, 9]), reward=2),
            episode(([1], [6]), reward=0),
            episode(([1], [5, 6, 7]), reward=0, masked=(0,)),
        ),
        group_of(),
    ]


@few
@given(groups=GROUPS, objective=st.sampled_from(OBJECTIVES))
def test_what_was_sent_is_found_again_in_its_records(groups, objective):
    record = sent(groups, objective)
    replayed = replay_batch(record, recorded(groups))
    assert replayed.difference is None
    assert replayed.objective == objective
    assert len(recorded_training_logprobs(replayed)) == len(replayed.made.data)
    shown = [datum for data in episode_data(replayed).values() for datum in data]
    assert [id(datum) for datum in shown] == [id(datum) for datum in replayed.made.data]


def test_a_minibatch_is_made_of_its_own_groups():
    groups = example()
    record = sent([groups[1]], Objective(), indices=[1])
    replayed = replay_batch(record, recorded(groups))
    assert replayed.difference is None
    assert {place: len(data) for place, data in episode_data(replayed).items()} == {
        EpisodeIndex(1, 0): 2, EpisodeIndex(1, 1): 1, EpisodeIndex(1, 2): 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda record: replace(record, digest="0"), "the datums have another digest"),
        (lambda record: replace(record, digest="0", num_datums=9), "9 datums were sent, 6 are"),
        (
            lambda record: replace(
                record, digest="0",
                datum_digests=(*record.datum_digests[:3], "-.-.-.-.-.-", *record.datum_digests[4:]),
            ),
            "datum 3 has other tokens than was sent",
        ),
    ],
)  # fmt: skip
def test_the_first_difference_is_named(change, difference):
    groups = example()
    replayed = replay_batch(change(sent(groups, Objective())), recorded(groups))
    assert replayed.difference.startswith(difference)


def test_groups_that_are_missing_are_named():
    groups = example()
    found = recorded(groups)
    del found[1]
    with pytest.raises(
        DataError, match=r"made of the groups \[0, 1, 2\], and no rollouts of \[1\]"
    ):
        replay_batch(sent(groups, Objective()), found)


def test_an_objective_of_another_version_is_refused():
    groups = example()
    record = replace(sent(groups, Objective()), objective={"advantage_of": "x"})
    with pytest.raises(DataError, match="recorded objective cannot be used"):
        replay_batch(record, recorded(groups))


def test_what_was_not_recorded_cannot_be_told():
    groups = example()
    without = replay_batch(sent(groups, Objective(), training_logprobs=None), recorded(groups))
    with pytest.raises(DataError, match="not recorded"):
        recorded_training_logprobs(without)
    with pytest.raises(DataError, match="the run had none"):
        remade_batch(without, Objective(kl_penalty_coef=0.1))


def test_advantages_of_trajectories_are_those_of_their_tokens():
    replayed = replay_batch(sent(example(), Objective()), recorded(example()))
    np.testing.assert_allclose(
        trajectory_advantages(replayed.made),
        [0.5, -0.5, 4 / 3, -2 / 3, np.nan],
        rtol=1e-6,
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradient_are_those_of_the_loss_datum_by_datum(objective):
    groups = example()
    replayed = replay_batch(sent(groups, objective), recorded(groups))
    data, training = replayed.made.data, recorded_training_logprobs(replayed)
    figures = objective_figures(data, training, objective)
    spec = objective.loss_spec

    def loss(p, datum):
        losses = numerics.token_losses(
            spec.name, p[:, None], weights=datum.weights[:, None], settings=spec.settings,
            sampling_logprobs=datum.logprobs, advantages=datum.advantages,
        )  # fmt: skip
        return jnp.sum(losses)

    pairs = [
        jax.value_and_grad(loss)(jnp.asarray(p), datum)
        for p, datum in zip(training, data, strict=True)
    ]
    gradients = [
        np.asarray(gradient)[datum.weights > 0]
        for (_, gradient), datum in zip(pairs, data, strict=True)
    ]
    np.testing.assert_allclose(figures.loss, sum(float(value) for value, _ in pairs), rtol=1e-5)
    np.testing.assert_allclose(figures.gradients, np.concatenate(gradients), rtol=1e-5, atol=1e-7)
    assert figures.advantages.size == figures.gradients.size == 8
    assert 0 <= figures.clip_fraction <= 1
    assert 0 < figures.effective_sample_size <= 1


def test_another_estimator_changes_signs_only_where_it_disagrees():
    groups = [group_of(*(episode(([1], [2]), reward=reward) for reward in (0, 0, 3)))]
    replayed = replay_batch(sent(groups, Objective()), recorded(groups))
    training = recorded_training_logprobs(replayed)
    ours = objective_figures(replayed.made.data, training, replayed.objective)
    other = Objective(advantages="group_normalized")
    theirs = objective_figures(remade_batch(replayed, other).data, training, other)
    found = compare_objectives(ours, theirs)
    assert found.sign_changes == 0
    assert found.gradient_cosine == pytest.approx(1)
    assert np.abs(theirs.advantages).mean() == pytest.approx(2 * np.sqrt(2) / 3, rel=1e-3)
    nothing = replace(theirs, advantages=0 * theirs.advantages, gradients=0 * theirs.gradients)
    assert compare_objectives(ours, nothing) == (1.0, 0.0)


def test_a_batch_of_nothing_has_figures():
    figures = objective_figures([], [], Objective())
    assert (figures.loss, figures.advantages.size) == (0, 0)
    assert compare_objectives(figures, figures) == (0, 0)
