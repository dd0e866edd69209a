"""Teaches a model Pig Latin from a handful of phrases, with the Tinker SDK and nothing else.

Usage: pig_latin.py BASE_MODEL STEPS LEARNING_RATE, with TINKER_BASE_URL and TINKER_API_KEY set.
"""

# ruff: noqa: T201 - a program prints its results

import sys

import numpy as np
import tinker
from tinker import types

PHRASES = [
    ("quick brown fox", "ick-quay own-bray ox-fay"),
    ("rainy morning", "ainy-ray orning-may"),
    ("under the bridge", "under-way e-thay idge-bray"),
    ("pasta with cheese", "asta-pay ith-way eese-chay"),
    ("old grey owl", "old-way ey-gray owl-way"),
    ("hidden garden", "idden-hay arden-gay"),
    ("seven small boats", "even-say all-smay oats-bay"),
]


def prompt_for(english):
    return f"English: {english}\nPig Latin:"


def example(tokenizer, english, pig_latin):
    question = tokenizer.encode(prompt_for(english), add_special_tokens=True)
    answer = tokenizer.encode(f" {pig_latin}\n\n", add_special_tokens=False)
    tokens = question + answer
    weights = [0.0] * len(question) + [1.0] * len(answer)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"weights": weights[1:], "target_tokens": tokens[1:]},
    )


def mean_loss(result, data):
    logprobs = np.concatenate([out["logprobs"].to_numpy() for out in result.loss_fn_outputs])
    weights = np.concatenate([datum.loss_fn_inputs["weights"].to_numpy() for datum in data])
    return -np.dot(logprobs, weights) / weights.sum()


def main(base_model, steps, learning_rate):
    service = tinker.ServiceClient()
    training = service.create_lora_training_client(base_model=base_model, rank=16).result()
    tokenizer = training.get_tokenizer()
    data = [example(tokenizer, *phrase) for phrase in PHRASES]
    for step in range(steps):
        passed = training.forward_backward(data, "cross_entropy")
        stepped = training.optim_step(types.AdamParams(learning_rate=learning_rate))
        print(f"loss {step}: {mean_loss(passed.result(), data):.4f}")
        stepped.result()
    sampling = training.save_weights_and_get_sampling_client().result()
    english, pig_latin = PHRASES[0]
    prompt = types.ModelInput.from_ints(tokenizer.encode(prompt_for(english)))
    params = types.SamplingParams(max_tokens=20, temperature=0.0, stop=["\n"])
    answers = sampling.sample(prompt=prompt, sampling_params=params, num_samples=2).result()
    for sequence in answers.sequences:
        print(f"answer: {tokenizer.decode(sequence.tokens)!r}")
    print(f"wanted: {pig_latin!r}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
