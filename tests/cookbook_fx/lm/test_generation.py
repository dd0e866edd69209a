import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, ModelError
from cookbook_fx.lm import (
    LMConfig,
    LossSpec,
    RowId,
    RowRequest,
    Sampled,
    SamplingParams,
    admit,
    advance,
    begin,
    decode_weights,
    forward,
    generate,
    generation,
    random_tensors,
    release,
    split_to_fit,
    weights_from_tensors,
)

CONFIG = LMConfig(
    vocab_size=97,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    max_position_embeddings=300,
    tie_word_embeddings=True,
    qk_norm=False,
)
WEIGHTS = weights_from_tensors(CONFIG, random_tensors(CONFIG).__getitem__)
MODEL = decode_weights(WEIGHTS, None)


def prompt(length: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([length, seed]).integers(0, CONFIG.vocab_size, length, np.int32)


def request(name: str, ids: np.ndarray, *, num_samples: int = 1, **params) -> RowRequest:
    chosen = SamplingParams(**{"max_tokens": 20, "seed": 0, **params})
    return RowRequest(id=name, prompt=ids, params=chosen, num_samples=num_samples)


def scored_by_training(ids: np.ndarray, answer: Sampled) -> np.ndarray:
    """Log-probabilities of an answer from the training pass over the whole sequence."""
    whole = np.concatenate([ids, answer.tokens])
    datum = Datum(tokens=whole[:-1], target_tokens=whole[1:])
    output = forward(WEIGHTS, None, [datum], loss=LossSpec(name="cross_entropy"))
    return output.logprobs[0][len(ids) - 1 :]


def run_to_end(state, updates: Sequence = ()) -> dict[RowId, Sampled]:
    parts: dict[RowId, list] = {}
    for update in updates:
        parts.setdefault(update.row, []).append(update)
    while state.row_ids:
        state, updates = advance(MODEL, state)
        for update in updates:
            parts.setdefault(update.row, []).append(update)
    return {
        row: Sampled(
            np.concatenate([each.tokens for each in those]),
            np.concatenate([each.logprobs for each in those]),
            those[-1].stop_reason,
        )
        for row, those in parts.items()
    }


def same(first: Sampled, second: Sampled) -> bool:
    return (
        first.tokens.tolist() == second.tokens.tolist()
        and first.logprobs.tobytes() == second.logprobs.tobytes()
        and first.stop_reason == second.stop_reason
    )


def test_logprobs_equal_those_of_the_training_pass():
    prompts = [prompt(1), prompt(2), prompt(40), prompt(130)]
    requests = [
        request(str(len(ids)), ids, temperature=0.7, top_p=0.9, num_samples=2) for ids in prompts
    ]
    for ids, answers in zip(prompts, generate(MODEL, requests), strict=True):
        assert len(answers) == 2
        for answer in answers:
            assert answer.logprobs.dtype == np.float32
            np.testing.assert_allclose(answer.logprobs, scored_by_training(ids, answer), atol=1e-4)


def test_greedy_takes_the_likeliest_token_of_the_training_pass_every_time():
    ids = prompt(9)
    [[answer]] = generate(MODEL, [request("a", ids, temperature=0.0, max_tokens=40)])
    assert answer.stop_reason == "length"
    assert len(answer.tokens) == 40
    whole = np.concatenate([ids, answer.tokens])
    targets = np.tile(np.arange(CONFIG.vocab_size, dtype=np.int32), (len(whole) - 1, 1))
    datum = Datum(tokens=whole[:-1], target_tokens=targets)
    scores = forward(WEIGHTS, None, [datum], loss=LossSpec(name="cross_entropy")).logprobs[0]
    assert scores[len(ids) - 1 :].argmax(1).tolist() == answer.tokens.tolist()


def test_an_answer_does_not_depend_on_company_or_order_of_arrival():
    requests = [
        request("a", prompt(5), seed=11, max_tokens=45),
        request("b", prompt(30), seed=12, temperature=1.3, top_k=20, max_tokens=20),
        request("c", prompt(5), seed=13, num_samples=3, max_tokens=33),
        request("d", prompt(70), seed=11, temperature=0.0, max_tokens=70),
    ]
    alone = [generate(MODEL, [each])[0] for each in requests]
    together = generate(MODEL, requests, max_rows=8)
    squeezed = generate(MODEL, requests[::-1], max_rows=2)[::-1]
    for one, two, three in zip(alone, together, squeezed, strict=True):
        assert all(map(same, one, two))
        assert all(map(same, one, three))


def test_requests_join_and_leave_while_others_run():
    requests = [request(str(i), prompt(3 + 7 * i), seed=i, max_tokens=18 + 9 * i) for i in range(6)]
    alone = {RowId(each.id, 0): generate(MODEL, [each])[0][0] for each in requests}
    state, seen = begin(MODEL, max_rows=4), []
    for batch in (requests[:1], requests[1:4], requests[4:]):
        while state.free_rows < len(batch):
            state, updates = advance(MODEL, state)
            seen += updates
        state = admit(MODEL, state, batch)
        state, updates = advance(MODEL, state)
        seen += updates
    answers = run_to_end(state, seen)
    assert answers.keys() == alone.keys()
    assert all(same(alone[row], answers[row]) for row in alone)


def test_a_state_can_be_continued_twice_with_the_same_result():
    state = admit(MODEL, begin(MODEL), [request("a", prompt(8), num_samples=2, max_tokens=40)])
    state, _ = advance(MODEL, state)
    first, second = run_to_end(state), run_to_end(state)
    assert all(same(first[row], second[row]) for row in first)


def test_samples_of_one_request_differ_and_can_be_taken_in_parts():
    whole = request("a", prompt(6), num_samples=5)
    [answers] = generate(MODEL, [whole])
    assert len({tuple(answer.tokens.tolist()) for answer in answers}) == 5
    late = dataclasses.replace(whole, num_samples=2, first_sample=3)
    assert all(map(same, generate(MODEL, [late])[0], answers[3:]))


def test_a_stop_token_ends_the_row_and_is_its_last_token():
    ids = prompt(10)
    [[free]] = generate(MODEL, [request("a", ids, max_tokens=30)])
    stop = int(free.tokens[17])
    first = free.tokens.tolist().index(stop)
    [[stopped]] = generate(MODEL, [request("a", ids, max_tokens=30, stop_tokens=(200, stop))])
    assert stopped.stop_reason == "stop"
    assert stopped.tokens.tolist() == free.tokens[: first + 1].tolist()
    np.testing.assert_array_equal(stopped.logprobs, free.logprobs[: first + 1])


def test_a_stop_token_as_the_last_allowed_one_counts_as_stop():
    ids = prompt(10)
    [[free]] = generate(MODEL, [request("a", ids, max_tokens=5)])
    [[ended]] = generate(
        MODEL, [request("a", ids, max_tokens=5, stop_tokens=(int(free.tokens[-1]),))]
    )
    assert ended.stop_reason == "stop"


def test_many_stop_tokens_are_all_heeded():
    every = tuple(range(CONFIG.vocab_size))
    [[answer]] = generate(MODEL, [request("a", prompt(4), stop_tokens=every)])
    assert (len(answer.tokens), answer.stop_reason) == (1, "stop")


def test_the_context_ends_a_row():
    ids = prompt(290)
    [[answer]] = generate(MODEL, [request("a", ids, max_tokens=1000)])
    assert (len(answer.tokens), answer.stop_reason) == (10, "length")
    np.testing.assert_allclose(answer.logprobs, scored_by_training(ids, answer), atol=1e-4)


def test_released_rows_are_gone_and_the_others_go_on():
    both = [request("a", prompt(5), max_tokens=50), request("b", prompt(6), max_tokens=50)]
    state = admit(MODEL, begin(MODEL, max_rows=2), both)
    state, seen = advance(MODEL, state)
    state = release(state, [RowId("a", 0), RowId("finished before", 0)])
    assert state.row_ids == (RowId("b", 0),)
    assert state.free_rows == 1
    [wanted] = generate(MODEL, both[1:])[0]
    answers = run_to_end(state, [update for update in seen if update.row == RowId("b", 0)])
    assert list(answers) == [RowId("b", 0)]
    assert same(answers[RowId("b", 0)], wanted)
    assert release(state, state.row_ids).row_ids == ()


def test_advancing_nothing_does_nothing():
    state = begin(MODEL)
    assert advance(MODEL, state) == (state, ())
    assert admit(MODEL, state, []) is state


def test_a_lone_row_is_not_decoded_at_the_width_of_its_group():
    group = [
        request("g", prompt(5), num_samples=8, max_tokens=4),
        request("a", prompt(5), max_tokens=60),
    ]
    state = admit(MODEL, begin(MODEL), group)
    assert state.cache.slots == 16
    state, _ = advance(MODEL, state)
    state, _ = advance(MODEL, state)
    assert state.cache.slots == 1
    [[wanted]] = generate(MODEL, group[1:])
    assert same(run_to_end(admit(MODEL, begin(MODEL), group))[RowId("a", 0)], wanted)


def test_a_varied_run_compiles_few_programs():
    program = generation._decode_chunk
    before = program._cache_size()
    rng = np.random.default_rng(5)
    requests = [
        request(
            str(i),
            prompt(int(rng.integers(1, 100))),
            seed=i,
            temperature=float(rng.choice([0.0, 0.5, 1.0])),
            top_k=int(rng.choice([-1, 1, 30])),
            top_p=float(rng.choice([0.5, 1.0])),
            max_tokens=int(rng.integers(1, 120)),
            stop_tokens=tuple(range(int(rng.integers(0, 8)))),
        )
        for i in range(40)
    ]
    generate(MODEL, requests, max_rows=16)
    # Widths 16, 4 and 1, lengths 128 and 256, whatever the parameters.
    assert program._cache_size() - before <= 6


def test_equal_prompts_are_read_once(monkeypatch):
    shapes = []
    prefill = generation.prefill

    def counting(model, tokens):
        shapes.append(tokens.shape)
        return prefill(model, tokens)

    monkeypatch.setattr(generation, "prefill", counting)
    shared = prompt(50)
    admit(
        MODEL,
        begin(MODEL),
        [
            request("a", shared, num_samples=7),
            request("b", shared.copy()),
            request("c", prompt(20)),
            request("d", prompt(66)),
        ],
    )
    assert shapes == [(2, 64), (1, 128)]


def test_a_prompt_that_is_being_answered_is_not_read_again(monkeypatch):
    whole = request("a", prompt(50), num_samples=3, max_tokens=40)
    [wanted] = generate(MODEL, [whole])
    first, later = split_to_fit([whole], 2)
    state, seen = advance(MODEL, admit(MODEL, begin(MODEL), first))
    monkeypatch.setattr(generation, "prefill", None)
    answers = run_to_end(admit(MODEL, state, later), seen)
    assert all(same(answers[RowId("a", i)], each) for i, each in enumerate(wanted))


def test_long_prompts_and_short_ones_are_read_right():
    config = dataclasses.replace(CONFIG, max_position_embeddings=1200)
    model = dataclasses.replace(MODEL, config=config)
    prompts = [prompt(length) for length in (700, 260, 250, 3, 1)]
    answers = generate(model, [request(str(i), ids, max_tokens=3) for i, ids in enumerate(prompts)])
    for ids, [answer] in zip(prompts, answers, strict=True):
        whole = np.concatenate([ids, answer.tokens])
        datum = Datum(tokens=whole[:-1], target_tokens=whole[1:])
        weights = dataclasses.replace(WEIGHTS, config=config)
        scores = forward(weights, None, [datum], loss=LossSpec(name="cross_entropy")).logprobs[0]
        np.testing.assert_allclose(answer.logprobs, scores[len(ids) - 1 :], atol=1e-4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request("x", prompt(300)), "300 tokens leaves no room in the model's context of 300"),
        (request("x", np.array([1, 97])), "token ids must be from 0 to 96, got 1 to 97"),
        (request("x", np.array([-1, 5])), "got -1 to 5"),
        (request("x", prompt(4), num_samples=33), "33 rows do not fit into the 31 free ones of 32"),
        (request("a", prompt(4)), r"twice there: \{RowId\(request='a', sample=0\)\}"),
    ],
)
def test_impossible_requests_are_refused(bad, message):
    state = admit(MODEL, begin(MODEL), [request("a", prompt(3))])
    with pytest.raises(ConfigurationError, match=message):
        admit(MODEL, state, [bad])


def test_malformed_requests_are_refused():
    with pytest.raises(ConfigurationError, match="at least one token"):
        request("a", np.zeros(0, np.int32))
    with pytest.raises(ConfigurationError, match="num_samples must be at least 1, got 0"):
        request("a", prompt(2), num_samples=0)
    with pytest.raises(ConfigurationError, match="max_rows must be at least 1, got 0"):
        begin(MODEL, max_rows=0)


def test_a_diverged_model_is_reported():
    broken = dataclasses.replace(MODEL, final_norm=MODEL.final_norm * np.nan)
    state = admit(broken, begin(broken), [request("a", prompt(3))])
    with pytest.raises(ModelError, match="not finite"):
        advance(broken, state)


def test_a_queue_is_split_where_the_rows_end():
    queue = [request("a", prompt(2), num_samples=3), request("b", prompt(2), num_samples=4)]
    now, later = split_to_fit(queue, 5)
    assert [(each.id, each.first_sample, each.num_samples) for each in now] == [
        ("a", 0, 3),
        ("b", 0, 2),
    ]
    assert [(each.id, each.first_sample, each.num_samples) for each in later] == [("b", 2, 2)]
    assert split_to_fit(queue, 0) == ((), tuple(queue))
    assert split_to_fit(queue, 7) == (tuple(queue), ())
