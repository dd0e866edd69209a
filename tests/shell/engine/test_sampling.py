"""Sampling through the SDK, on a tiny model; and the search for stop strings by itself."""

import time
from concurrent.futures import Future

import hypothesis.strategies as st
import numpy as np
import pytest
import tinker
from hypothesis import given

from cookbook_fx.data import Datum
from cookbook_fx.lm import (
    LMConfig,
    LoRAConfig,
    LossSpec,
    forward_backward,
    init_lora,
    random_tensors,
    weights_from_tensors,
)
from shell.engine import sampling
from shell.engine.checkpoints import CheckpointStore
from shell.engine.memory import Memory
from shell.engine.models import Models
from shell.engine.requests import ForwardBackward, SamplePrompt
from shell.engine.sampling import SampleWork, SamplingPool, stop_string_end
from shell.engine.sessions import SamplerWeights

PROMPT = [5, 9, 14]


def random_model():
    config = LMConfig(
        vocab_size=23,
        hidden_size=8,
        intermediate_size=12,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        qk_norm=False,
    )
    return weights_from_tensors(config, random_tensors(config).__getitem__)


def work(weights):
    request = SamplePrompt(
        prompt=np.array(PROMPT),
        num_samples=1,
        max_tokens=3,
        stop_strings=(),
        stop_tokens=(),
        temperature=1.0,
        top_k=-1,
        top_p=1.0,
        seed=None,
        prompt_logprobs=True,
        prompt_logprobs_last_n=None,
        topk_prompt_logprobs=0,
    )
    return SampleWork(weights=weights, request=request, seed=0, future=Future())


def run(pool, *works):
    """Samples to the end; the result of the first."""
    pool.admit(works)
    while pool.advance():
        pass
    return works[0].future.result(timeout=0)


@pytest.fixture
def base(client, base_model):
    return client.create_sampling_client(base_model=base_model).result()


def ask(sampler, *, prompt=PROMPT, num_samples=1, **params):
    return sampler.sample(
        tinker.ModelInput.from_ints(prompt),
        num_samples,
        tinker.SamplingParams(**({"max_tokens": 6, "stop": [], "seed": 3} | params)),
    ).result()


def tokens(response):
    return [list(sequence.tokens) for sequence in response.sequences]


def test_reported_logprobs_are_those_of_the_model(base):
    [sequence] = ask(base, temperature=0.7, max_tokens=9).sequences
    assert sequence.stop_reason == "length"
    whole = [*PROMPT, *sequence.tokens]
    scored = base.compute_logprobs(tinker.ModelInput.from_ints(whole)).result()
    assert scored[0] is None
    np.testing.assert_allclose(scored[len(PROMPT) :], sequence.logprobs, atol=1e-4)


def test_greedy_takes_the_likeliest_token_each_time(base):
    [greedy] = tokens(ask(base, temperature=0.0))
    scores = base.sample(
        tinker.ModelInput.from_ints([*PROMPT, *greedy]),
        1,
        tinker.SamplingParams(max_tokens=1),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=3,
    ).result()
    best = [row[0][0] for row in scores.topk_prompt_logprobs[len(PROMPT) :]]
    assert best == greedy


def test_top_k_of_the_prompt_agrees_with_its_logprobs(base):
    response = base.sample(
        tinker.ModelInput.from_ints([5, 9, 14, 20]),
        1,
        tinker.SamplingParams(max_tokens=1),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=300,
    ).result()
    assert response.topk_prompt_logprobs[0] is None
    for token, logprob, row in zip(
        [9, 14, 20], response.prompt_logprobs[1:], response.topk_prompt_logprobs[1:], strict=True
    ):
        likelihoods = [value for _, value in row]
        assert likelihoods == sorted(likelihoods, reverse=True)
        assert np.exp(likelihoods).sum() == pytest.approx(1, abs=1e-4)
        assert dict(row)[token] == pytest.approx(logprob, abs=1e-5)


def test_a_seed_fixes_all_samples_and_each_is_its_own(base):
    first = tokens(ask(base, num_samples=5, seed=2**70))
    assert tokens(ask(base, num_samples=5, seed=2**70)) == first
    assert tokens(ask(base, num_samples=5, seed=8)) != first
    assert len({tuple(sample) for sample in first}) == 5


def test_samples_do_not_depend_on_who_else_is_sampling(base):
    alone = tokens(ask(base, num_samples=2, seed=4))
    params = tinker.SamplingParams(max_tokens=6, stop=[], seed=4)
    crowd = [
        base.sample(tinker.ModelInput.from_ints(prompt), 2, params)
        for prompt in ([7] * 3, PROMPT, [8] * 5, PROMPT, [250, 4])
    ]
    answers = [tokens(each.result()) for each in crowd]
    assert answers[1] == answers[3] == alone
    assert len({str(answer) for answer in answers}) == 4


def test_more_samples_than_fit_at_once_all_come(base):
    response = ask(base, num_samples=70, max_tokens=3)
    assert len({sequence.sequence_id for sequence in response.sequences}) == 70
    assert {len(sequence.tokens) for sequence in response.sequences} == {3}


def test_stop_tokens_end_a_sample_and_are_its_last_token(base):
    [free] = tokens(ask(base, max_tokens=12))
    [sequence] = ask(base, max_tokens=12, stop=[free[4]]).sequences
    assert list(sequence.tokens) == free[: free.index(free[4]) + 1]
    assert len(sequence.logprobs) == len(sequence.tokens)
    assert sequence.stop_reason == "stop"


def test_stop_strings_end_a_sample_where_the_text_contains_one(base, new_model):
    tokenizer = new_model().get_tokenizer()
    [free] = tokens(ask(base, max_tokens=40))
    text = tokenizer.decode(free[:30])
    # Two tokens' worth of text, across their boundary.
    stop = tokenizer.decode(free[20:22])
    assert stop in text
    [sequence] = ask(base, max_tokens=40, stop=["never to be found", stop]).sequences
    assert sequence.stop_reason == "stop"
    assert stop in tokenizer.decode(sequence.tokens)
    assert stop not in tokenizer.decode(sequence.tokens[:-1])
    assert list(sequence.tokens) == free[: len(sequence.tokens)]


def test_without_a_limit_the_context_is_the_limit(base):
    [sequence] = ask(base, prompt=[5] * 500, max_tokens=None).sequences
    assert len(sequence.tokens) == 12
    assert sequence.stop_reason == "length"


def test_sampling_requests_that_cannot_be_met_fail_and_say_why(base):
    for params, complaint in (
        ({"prompt": [5] * 512}, "no room"),
        ({"prompt": [300]}, "prompt tokens must be"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
    ):
        with pytest.raises(tinker.RequestFailedError, match=complaint) as failure:
            ask(base, **params)
        assert failure.value.category is tinker.types.RequestErrorCategory.User


def test_a_sampler_keeps_the_weights_of_its_moment(new_model, batch, fit, base):
    model = new_model()
    fresh = model.save_weights_and_get_sampling_client().result()
    greedy = {"temperature": 0.0, "max_tokens": 8}
    assert tokens(ask(fresh, **greedy)) == tokens(ask(base, **greedy))
    fit(model, batch, 4, learning_rate=3e-2)
    trained = model.save_weights_and_get_sampling_client().result()
    after = tokens(ask(trained, **greedy))
    assert after != tokens(ask(base, **greedy))
    fit(model, batch, 2, learning_rate=3e-2)
    assert tokens(ask(fresh, **greedy)) == tokens(ask(base, **greedy))
    assert tokens(ask(trained, **greedy)) == after


def test_samples_match_the_trainers_logprobs(new_model, batch, fit, make_datum):
    model = new_model()
    fit(model, batch, 2)
    sampler = model.save_weights_and_get_sampling_client().result()
    [sequence] = ask(sampler, max_tokens=8, temperature=1.0).sequences
    whole = [*PROMPT, *sequence.tokens]
    [output] = model.forward([make_datum(whole)], "cross_entropy").result().loss_fn_outputs
    trained = output["logprobs"].to_numpy()[len(PROMPT) - 1 :]
    np.testing.assert_allclose(trained, sequence.logprobs, atol=1e-4)


def test_named_weights_are_sampled_as_saved_from_any_client(client, new_model, batch, fit):
    model = new_model()
    fit(model, batch, 3, learning_rate=3e-2)
    named = model.save_weights_for_sampler("step-3").result().path
    state = model.save_state("step-3").result().path
    unnamed = model.save_weights_and_get_sampling_client().result()
    expected = tokens(ask(unnamed, num_samples=3))
    fit(model, batch, 1)
    for path in (named, state):
        sampler = client.create_sampling_client(model_path=path).result()
        assert tokens(ask(sampler, num_samples=3)) == expected


def test_a_sampler_of_a_named_checkpoint_holds_no_adapter_of_its_own():
    weights = random_model()
    loads = []
    adapter = init_lora(weights.config, LoRAConfig(rank=2))

    def load():
        loads.append(1)
        return adapter

    pool = SamplingPool(weights, str, Memory(weights, 10**9), end_tokens=())
    named = SamplerWeights(key="named", load=load)
    run(pool, work(named), work(named))
    assert len(loads) == 1
    # Two others take the room for merged weights; then the first is read again.
    for key in "ab":
        run(pool, work(SamplerWeights(key=key, load=lambda: None)))
    run(pool, work(named))
    assert len(loads) == 2


def test_a_bug_in_sampling_fails_what_is_under_way_and_nothing_after(monkeypatch):
    model = random_model()
    pool = SamplingPool(model, str, Memory(model, 10**9), end_tokens=())
    weights = SamplerWeights(key="base", load=lambda: None)
    with monkeypatch.context() as broken:
        broken.setattr(sampling, "split_to_fit", lambda *_: 1 / 0)
        failing = work(weights)
        pool.admit([failing])
        assert not pool.advance()
        with pytest.raises(ZeroDivisionError):
            failing.future.result(timeout=0)
    [[sample], _] = run(pool, work(weights))
    assert len(sample.tokens) == 3


def test_a_sample_is_drawn_between_the_micro_batches_of_a_training_step(tmp_path):
    base = random_model()
    pool = SamplingPool(base, str, Memory(base, 10**9), end_tokens=())
    store = CheckpointStore(tmp_path, config=base.config, base_model="tiny")
    models = Models(base, store, Memory(base, 10**9), between=pool.advance)
    models.create("model", LoRAConfig(rank=2))
    ids = np.arange(60, dtype=np.int32) % 23
    datums = tuple(Datum(tokens=ids, target_tokens=np.roll(ids, -1 - i)) for i in range(40))
    asked = work(SamplerWeights(key="base", load=lambda: None))
    pool.submit([asked])

    loss = LossSpec(name="cross_entropy")
    operation = ForwardBackward(datums=datums, loss=loss, forward_only=False)
    trained = models.perform("model", operation)

    assert len(asked.future.result(timeout=0).samples[0].tokens) == 3
    _, alone = forward_backward(
        base, init_lora(base.config, LoRAConfig(rank=2)), None, datums, loss=loss
    )
    assert trained.loss_sum == alone.loss_sum


def test_several_samplers_at_once_each_answer_from_their_own_weights(new_model, batch, fit, base):
    model = new_model()
    samplers = [base]
    for _ in range(3):
        fit(model, batch, 1, learning_rate=3e-2)
        samplers.append(model.save_weights_and_get_sampling_client().result())
    expected = [tokens(ask(sampler, temperature=0.0)) for sampler in samplers]
    params = tinker.SamplingParams(max_tokens=6, stop=[], temperature=0.0)
    prompt = tinker.ModelInput.from_ints(PROMPT)
    together = [sampler.sample(prompt, 1, params) for _ in range(3) for sampler in samplers]
    assert [tokens(each.result()) for each in together] == expected * 3


def test_an_inflight_sampler_follows_later_inflight_snapshots(raw, raw_model, wire_body, fetch):
    def save(seq_id, session_seq_id):
        body = {
            "model_id": raw_model,
            "seq_id": seq_id,
            "sampling_session_seq_id": session_seq_id,
            "kind": "inflight",
        }
        promise = raw.post("save_weights_for_sampler", json=body).json()
        return fetch(promise).json()["sampling_session_id"]

    def ask(sampler, seq_id):
        body = {
            "sampling_session_id": sampler,
            "seq_id": seq_id,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]},
            "sampling_params": {"max_tokens": 6, "temperature": 0.0, "stop": []},
        }
        return fetch(raw.post("asample", json=body).json()).content

    headers = {"Content-Type": "application/x-protobuf"}
    first = save(1, 1)
    before = ask(first, 0)
    raw.post("forward_backward", content=wire_body(raw_model, 2), headers=headers)
    adam = {"learning_rate": 0.5}
    raw.post("optim_step", json={"model_id": raw_model, "seq_id": 3, "adam_params": adam})
    assert ask(first, 1) == before
    second = save(4, 2)
    assert ask(second, 0) == ask(first, 2) != before


def test_a_checkpoint_that_is_not_there_is_not_found(client):
    missing = "tinker://nobody:train:0/sampler_weights/nothing"
    with pytest.raises(tinker.NotFoundError, match="no checkpoint"):
        client.create_sampling_client(model_path=missing).result()


def test_sampling_and_training_take_turns(new_model, batch, fit, base):
    model = new_model()
    params = tinker.SamplingParams(max_tokens=400, stop=[], seed=1)
    pending = base.sample(tinker.ModelInput.from_ints(PROMPT), 4, params)
    losses = fit(model, batch, 8)
    assert losses[-1] < losses[0]
    assert [len(s.tokens) for s in pending.result().sequences] == [400] * 4


def test_answers_and_scores_are_the_same_bits_in_any_order_and_company(base):
    rng = np.random.default_rng(4)
    requests = [
        (rng.integers(3, 250, size).tolist(), seed, samples)
        for seed, (size, samples) in enumerate([(3, 1), (40, 5), (90, 2), (5, 1), (40, 9), (70, 1)])
    ]

    def answers(order, *, pauses):
        pending = {}
        for index in order:
            prompt, seed, samples = requests[index]
            params = tinker.SamplingParams(max_tokens=20 + 5 * seed, stop=[], seed=seed)
            pending[index] = base.sample(
                tinker.ModelInput.from_ints(prompt), samples, params, include_prompt_logprobs=True
            )
            if pauses:
                time.sleep(float(rng.uniform(0, 0.05)))
        responses = {index: each.result() for index, each in pending.items()}
        return {
            index: (
                [(list(s.tokens), list(s.logprobs)) for s in response.sequences],
                response.prompt_logprobs[1:],
            )
            for index, response in responses.items()
        }

    one_by_one = {}
    for index in range(len(requests)):
        one_by_one |= answers([index], pauses=False)
    assert answers(range(len(requests)), pauses=False) == one_by_one
    for _ in range(3):
        assert answers(rng.permutation(len(requests)).tolist(), pauses=True) == one_by_one


def test_a_gradient_depends_on_its_own_request_alone(new_model, batch, base, logprobs):
    def trained(*, busy):
        model = new_model()
        other = new_model(rank=8) if busy else None
        params = tinker.SamplingParams(max_tokens=60, stop=[], seed=1)
        for _ in range(2):
            if busy:
                base.sample(tinker.ModelInput.from_ints(PROMPT), 7, params)
                other.forward_backward(batch[:1], "cross_entropy")
            model.forward_backward(batch, "cross_entropy")
            model.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
        return logprobs(model, batch)

    assert trained(busy=True).tobytes() == trained(busy=False).tobytes()


def decode(ids):
    return bytes(ids).decode("latin-1")


@given(
    text=st.text("ab\n", min_size=1, max_size=30),
    strings=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    chunk=st.integers(1, 7),
)
def test_a_stop_string_is_found_at_its_first_end_whatever_the_chunks(text, strings, chunk):
    ids = list(text.encode("latin-1"))
    ends = [text.find(string) + len(string) for string in strings if string in text]
    found = None
    for checked in range(0, len(ids), chunk):
        found = stop_string_end(ids[: checked + chunk], strings, decode, checked=checked)
        if found is not None:
            break
    assert found == min(ends, default=None)
