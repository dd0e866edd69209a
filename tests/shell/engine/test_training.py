"""Training through the SDK, on a tiny model."""

import numpy as np
import pytest
import tinker

CE = "cross_entropy"
USER = tinker.types.RequestErrorCategory.User


def step(model, data, learning_rate=1e-2, **settings):
    model.forward_backward(data, CE)
    return model.optim_step(tinker.AdamParams(learning_rate=learning_rate, **settings)).result()


def test_the_loss_falls_and_reported_logprobs_are_what_it_sums(new_model, batch, fit):
    model = new_model()
    passed = model.forward_backward(batch, CE).result()
    logprobs = [output["logprobs"].to_numpy() for output in passed.loss_fn_outputs]
    assert [len(each) for each in logprobs] == [8, 13, 5]
    assert passed.metrics["loss:sum"] == pytest.approx(-sum(map(np.sum, logprobs)), rel=1e-5)
    losses = fit(model, batch, 6)
    assert losses[0] == pytest.approx(passed.metrics["loss:sum"], rel=1e-5)
    assert losses[-1] < 0.7 * losses[0]


def test_an_optimizer_step_reports_the_gradient_and_counts(new_model, batch):
    model = new_model()
    first, second = step(model, batch), step(model, batch)
    assert first.metrics["step"] == 1
    assert second.metrics["step"] == 2
    assert first.metrics["grad_norm"] > 0


def test_forward_alone_changes_nothing(new_model, batch, logprobs):
    model = new_model()
    before = logprobs(model, batch)
    model.forward(batch, CE).result()
    step_without_gradients = model.optim_step(tinker.AdamParams()).result()
    assert step_without_gradients.metrics["grad_norm"] == 0
    np.testing.assert_array_equal(logprobs(model, batch), before)


def test_the_same_operations_give_the_same_bits(new_model, batch, fit, logprobs):
    first, second = new_model(), new_model()
    assert fit(first, batch, 3) == fit(second, batch, 3)
    np.testing.assert_array_equal(logprobs(first, batch), logprobs(second, batch))


def test_gradients_accumulate_over_calls_until_the_step(new_model, batch, logprobs):
    whole, parts = new_model(), new_model()
    step(whole, batch)
    for datum in batch:
        parts.forward_backward([datum], CE)
    parts.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    np.testing.assert_allclose(logprobs(whole, batch), logprobs(parts, batch), atol=2e-4)


def test_adapters_on_one_base_do_not_see_each_other(new_model, batch, fit, logprobs):
    trained, untouched = new_model(), new_model()
    before = logprobs(untouched, batch)
    fit(trained, batch, 3)
    np.testing.assert_array_equal(logprobs(untouched, batch), before)
    assert np.abs(logprobs(trained, batch) - before).max() > 0.1


def test_a_run_continued_with_its_optimizer_ends_in_the_same_bits(
    client, new_model, batch, fit, logprobs
):
    model = new_model()
    fit(model, batch, 2)
    saved = model.save_state("halfway").result().path
    fit(model, batch, 2)
    continued = client.create_training_client_from_state_with_optimizer(saved).result()
    fit(continued, batch, 2)
    np.testing.assert_array_equal(logprobs(continued, batch), logprobs(model, batch))
    restarted = client.create_training_client_from_state(saved).result()
    fit(restarted, batch, 2)
    assert np.abs(logprobs(restarted, batch) - logprobs(model, batch)).max() > 1e-4


def test_a_run_continued_without_its_optimizer_starts_counting_anew(
    client, new_model, batch, logprobs
):
    model = new_model()
    step(model, batch)
    saved = model.save_state("weights-only").result().path
    first = client.create_training_client_from_state(saved).result()
    second = client.create_training_client_from_state(saved).result()
    np.testing.assert_array_equal(logprobs(first, batch), logprobs(model, batch))
    assert step(first, batch).metrics["step"] == 1
    step(second, batch)
    np.testing.assert_array_equal(logprobs(first, batch), logprobs(second, batch))
    assert first.get_info().lora_rank == 4


def test_unspent_gradients_are_not_part_of_a_saved_state(client, new_model, batch, logprobs):
    model = new_model()
    model.forward_backward(batch, CE).result()
    saved = model.save_state("before-step").result().path
    continued = client.create_training_client_from_state_with_optimizer(saved).result()
    assert continued.optim_step(tinker.AdamParams()).result().metrics["grad_norm"] == 0


@pytest.mark.filterwarnings("ignore:DEPRECATED:FutureWarning")
def test_an_existing_client_can_load_a_state_of_its_shape(new_model, batch, fit, logprobs):
    model, other, misfit = new_model(), new_model(), new_model(rank=2)
    fit(model, batch, 2)
    saved = model.save_state("shared").result().path
    expected = logprobs(model, batch)
    other.load_state_with_optimizer(saved).result()
    np.testing.assert_array_equal(logprobs(other, batch), expected)
    with pytest.raises(tinker.RequestFailedError, match="another shape"):
        misfit.load_state(saved).result()


def test_what_is_wrong_with_a_request_is_the_users_to_know(new_model, batch, make_datum):
    model = new_model()
    short = make_datum([5, 6, 7])
    short.loss_fn_inputs["weights"] = tinker.TensorData.from_numpy(np.ones(3, np.float32))
    cases = [
        (lambda: model.forward_backward(batch, "no_such_loss"), "no_such_loss"),
        (lambda: model.forward_backward(batch, CE, {"colour": 1.0}), "colour"),
        (lambda: model.forward_backward(batch, "ppo"), "logprobs"),
        (lambda: model.forward_backward(batch, "gspo"), "needs clip_low_threshold and clip_high"),
        (lambda: model.forward_backward([short], CE), "weights must have the shape"),
        (lambda: model.forward_backward([make_datum([5, 300, 6])], CE), "300"),
        (lambda: model.forward_backward([make_datum([5] * 600)], CE), "512"),
        (lambda: model.optim_step(tinker.AdamParams(learning_rate=-1.0)), "learning_rate"),
        (lambda: model.save_state("../escape"), "cannot be used"),
        (lambda: model.save_weights_for_sampler("a/b"), "cannot be used"),
        (lambda: model.save_state("x", ttl_seconds=5), "ttl_seconds"),
    ]
    for ask, complaint in cases:
        with pytest.raises(tinker.RequestFailedError, match=complaint) as failure:
            ask().result()
        assert failure.value.category is USER
    # None of them left a hole: the model goes on.
    assert step(model, batch).metrics["step"] == 1


def test_a_failed_pass_keeps_the_gradients_before_it(new_model, batch, make_datum, logprobs):
    clean, dirty = new_model(), new_model()
    clean.forward_backward(batch, CE).result()
    dirty.forward_backward(batch, CE).result()
    endless = make_datum([5, 6, 7], weight=np.inf)
    with pytest.raises(tinker.RequestFailedError, match="finite") as failure:
        dirty.forward_backward([endless], CE).result()
    assert failure.value.category is USER
    for model in (clean, dirty):
        model.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    np.testing.assert_array_equal(logprobs(dirty, batch), logprobs(clean, batch))


def test_a_taken_name_is_refused_unless_overwritten(client, new_model, batch, fit, logprobs):
    model = new_model()
    first = model.save_state("name").result().path
    fit(model, batch, 1)
    with pytest.raises(tinker.RequestFailedError, match="exists already"):
        model.save_state("name").result()
    again = model.save_state("name", overwrite=True).result().path
    assert again == first
    loaded = client.create_training_client_from_state(again).result()
    np.testing.assert_array_equal(logprobs(loaded, batch), logprobs(model, batch))


def test_creating_from_what_is_not_there_fails_with_the_path(client):
    missing = "tinker://nobody:train:0/weights/nothing"
    with pytest.raises(tinker.RequestFailedError, match="no checkpoint") as failure:
        client.create_training_client_from_state(missing).result()
    assert failure.value.category is USER


def test_an_unknown_base_model_is_refused_with_the_one_served(client, base_model):
    with pytest.raises(tinker.BadRequestError, match="tiny-chat"):
        client.create_lora_training_client(base_model="meta-llama/Llama-9", rank=4).result()


def test_a_loss_made_by_hand_from_forward_has_the_gradient_it_should(
    new_model, batch, make_datum, logprobs
):
    """What forward_backward_custom does: weights are minus the gradient of one's own loss."""
    by_hand, built_in = new_model(), new_model()
    scores = by_hand.forward(batch, CE).result().loss_fn_outputs
    # The loss sum(w * -p) with w = 0.5 has dC/dp = -0.5 everywhere.
    data = [
        tinker.Datum(
            model_input=datum.model_input,
            loss_fn_inputs=datum.loss_fn_inputs
            | {"weights": np.full(len(score["logprobs"].to_numpy()), 0.5, np.float32)},
        )
        for datum, score in zip(batch, scores, strict=True)
    ]
    step(by_hand, data)
    # Adam's first step does not depend on the scale of the gradient.
    step(built_in, batch)
    np.testing.assert_allclose(logprobs(by_hand, batch), logprobs(built_in, batch), atol=1e-3)


def test_the_policy_losses_reach_the_gradient(new_model, make_datum, logprobs):
    model = new_model()
    tokens = [5, 9, 14, 20, 31]
    inputs = tinker.ModelInput.from_ints(tokens[:-1])
    before = logprobs(model, [make_datum(tokens)])
    datum = tinker.Datum(
        model_input=inputs,
        loss_fn_inputs={
            "target_tokens": np.array(tokens[1:], np.int64),
            "logprobs": before.astype(np.float32),
            "advantages": np.array([1.0, 1.0, -1.0, -1.0], np.float32),
        },
    )
    for loss, config in (
        ("importance_sampling", None),
        ("ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.5}),
        ("cispo", None),
        ("dro", {"beta": 0.1}),
        ("gspo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.5}),
    ):
        passed = model.forward_backward([datum], loss, config).result()
        np.testing.assert_allclose(
            passed.loss_fn_outputs[0]["logprobs"].to_numpy(), before, atol=1e-5
        )
    model.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    change = logprobs(model, [make_datum(tokens)]) - before
    assert change[:2].sum() > 0 > change[2:].sum()


def test_a_mask_says_which_tokens_make_up_the_ratio_of_a_sequence(new_model, logprobs, make_datum):
    model = new_model()
    tokens = [5, 9, 14, 20, 31]
    current = logprobs(model, [make_datum(tokens)])
    columns = {
        "target_tokens": np.array(tokens[1:], np.int64),
        "logprobs": (current - np.log([2.0, 4.0, 3.0, 7.0])).astype(np.float32),
        "advantages": np.array([1.0, 1.0, 10.0, 100.0], np.float32),
    }
    inputs = tinker.ModelInput.from_ints(tokens[:-1])

    def loss(**more: list[float]) -> float:
        arrays = {name: np.array(values, np.float32) for name, values in more.items()}
        datum = tinker.Datum(model_input=inputs, loss_fn_inputs=columns | arrays)
        thresholds = {"clip_low_threshold": 0.0, "clip_high_threshold": 10.0}
        return model.forward([datum], "gspo", thresholds).result().metrics["loss:sum"]

    assert loss() == pytest.approx(-112 * (2 * 4 * 3 * 7) ** 0.25, rel=1e-4)
    assert loss(weights=[1, 1, 1, 0]) == pytest.approx(-12 * (2 * 4 * 3) ** (1 / 3), rel=1e-4)
    assert loss(sequence_ratio_mask=[1, 1, 0, 0]) == pytest.approx(-112 * 8**0.5, rel=1e-4)
    both = loss(weights=[1, 1, 1, 0], sequence_ratio_mask=[0, 1, 0, 0])
    assert both == pytest.approx(-12 * 4, rel=1e-4)


def test_get_tokenizer_works_without_the_hub(new_model):
    tokenizer = new_model().get_tokenizer()
    ids = tokenizer.encode("the cat<|im_end|>", add_special_tokens=False)
    assert tokenizer.decode(ids) == "the cat<|im_end|>"
