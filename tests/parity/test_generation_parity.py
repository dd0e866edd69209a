"""Greedy generations, token for token those of transformers' `generate` on the same weights."""

from pathlib import Path

import numpy as np
import pytest

from cookbook_fx.lm import RowRequest, SamplingParams, decode_weights, generate
from shell.hub import DEFAULT_MODEL, load_tokenizer, load_weights, resolve_model

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NEW_TOKENS = 64
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Explain in simple words why the sky is blue, and what changes at sunset.",
    "List three things one needs to bake bread.",
)


def greedy_here(directory: Path, prompts: list[np.ndarray], stops: tuple[int, ...]):
    params = SamplingParams(max_tokens=NEW_TOKENS, seed=0, temperature=0.0, stop_tokens=stops)
    requests = [
        RowRequest(id=str(index), prompt=prompt, params=params)
        for index, prompt in enumerate(prompts)
    ]
    return [
        answer for (answer,) in generate(decode_weights(load_weights(directory), None), requests)
    ]


def greedy_there(directory: Path, prompts: list[np.ndarray], stops: tuple[int, ...]):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = list(stops) or None
    for prompt in prompts:
        ids = torch.as_tensor(prompt.astype(np.int64))[None]
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = output.sequences[0, len(prompt) :]
        logprobs = torch.log_softmax(torch.cat(output.logits).float(), -1)
        yield tokens.numpy(), logprobs.gather(1, tokens[:, None])[:, 0].numpy()


def assert_equal_generations(
    directory: Path, prompts: list[np.ndarray], stops: tuple[int, ...], *, atol: float
) -> None:
    theirs = list(greedy_there(directory, prompts, stops))
    ours = greedy_here(directory, prompts, stops)
    for mine, (tokens, logprobs) in zip(ours, theirs, strict=True):
        assert mine.tokens.tolist() == tokens.tolist()
        np.testing.assert_allclose(mine.logprobs, logprobs, atol=atol)


def test_smollm2_generates_what_transformers_generates():
    directory = resolve_model(DEFAULT_MODEL, say=print).directory
    tokenizer = load_tokenizer(directory)
    prompts = [
        np.asarray(
            tokenizer.encode(
                f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
                add_special_tokens=False,
            ),
            np.int32,
        )
        for question in QUESTIONS
    ]
    assert_equal_generations(directory, prompts, (tokenizer.eos_token_id,), atol=1e-3)


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_random_models_generate_what_transformers_generates(family, tmp_path):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 300, length).astype(np.int32) for length in (1, 7, 33, 90)]
    assert_equal_generations(tmp_path, prompts, (), atol=1e-4)
