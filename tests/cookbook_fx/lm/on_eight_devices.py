"""Prints how far several devices are from one, as JSON; run by test_sharding.py."""

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from cookbook_fx.data import Datum
from cookbook_fx.lm import (
    AdamParams,
    LMConfig,
    LoRAConfig,
    LossSpec,
    RowRequest,
    SamplingParams,
    decode_weights,
    forward_backward,
    generate,
    init_lora,
    init_train_state,
    optim_step,
    random_tensors,
    score_prompts,
    weights_from_tensors,
)
from cookbook_fx.lm.sharding import make_mesh
from shell.engine.checkpoints import CheckpointPath, CheckpointStore

CONFIG = LMConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_layers=1,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    max_position_embeddings=256,
    tie_word_embeddings=True,
    qk_norm=True,
)
LORA = LoRAConfig(rank=8, seed=1)
TENSORS = random_tensors(CONFIG)
STEPS = 2
TOKENS = 240


def largest(one, other) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def results(mesh, *, dtype: str = "float32", sampling: bool = True) -> dict:
    rng = np.random.default_rng(0)
    weights = weights_from_tensors(CONFIG, TENSORS.__getitem__, mesh=mesh, dtype=dtype)
    state = init_train_state(init_lora(CONFIG, LORA))
    data = [
        Datum(tokens=ids[:-1], target_tokens=ids[1:])
        for ids in (rng.integers(0, 320, size, np.int32) for size in (30, 60, 9, 61, 24, 50, 13))
    ]
    losses = []
    for _ in range(STEPS):
        gradients, output = forward_backward(weights, state.adapter, None, data, loss=LossSpec())
        losses.append(output.loss_sum / TOKENS)
        state, _ = optim_step(state, gradients, AdamParams(learning_rate=1e-3, eps=1e-6))
    trained = {
        "losses": losses,
        "logprobs": output.logprobs,
        "gradients": jax.tree.map(lambda g: g / TOKENS, gradients),
        "adapter": state.adapter,
        "state": state,
        "weights": weights,
    }
    if not sampling:
        return trained
    prompts = [rng.integers(0, 320, size, np.int32) for size in (5, 40)]
    requests = [
        RowRequest(
            id=number,
            prompt=prompt,
            params=SamplingParams(max_tokens=12, seed=number),
            num_samples=2,
        )
        for number, prompt in enumerate(prompts)
    ]
    model = decode_weights(weights, state.adapter)
    sampled = [answer for answers in generate(model, requests) for answer in answers]
    scores = score_prompts(weights, state.adapter, prompts)
    return trained | {
        "tokens": [answer.tokens for answer in sampled],
        "sampled_logprobs": [answer.logprobs for answer in sampled],
        "scores": [each.logprobs[1:] for each in scores],
    }


def parts(array) -> int:
    """How many different parts of it the devices hold."""
    return len({str(shard.index) for shard in array.addressable_shards})


def restored(state, folder: str):
    """A training state that was saved from many devices and read without a mesh."""
    store = CheckpointStore(Path(folder), config=CONFIG, base_model="tiny")
    saved = store.save(
        CheckpointPath(model_id="m", segment="weights", name="n"),
        adapter=state.adapter,
        optimizer=state.optimizer,
        lora=LORA,
        ttl_seconds=None,
        user_metadata=None,
        overwrite=False,
    )
    return store.load_state(saved)


def main() -> None:
    one = results(None)
    found: dict = {}
    for data, fsdp in ((2, 4), (8, 1), (1, 8)):
        mesh = make_mesh(jax.devices(), data=data, fsdp=fsdp)
        many = results(mesh, sampling=(data, fsdp) == (2, 4))
        compared = many.keys() & one.keys() - {"state", "weights"}
        found[f"{data}x{fsdp}"] = {name: largest(one[name], many[name]) for name in compared} | {
            "parts": {
                "layers": parts(many["weights"].layers.down),
                "adapter": parts(many["state"].adapter.up.b),
                "moments": parts(many["state"].optimizer.mu.up.b),
            },
        }
        with tempfile.TemporaryDirectory() as folder:
            back = restored(many["state"], folder)
        found[f"{data}x{fsdp}"]["restored"] = largest(back, many["state"])
        found[f"{data}x{fsdp}"]["parts"]["restored"] = parts(back.adapter.up.b)
    rough = results(None, dtype="bfloat16", sampling=False)
    found["bfloat16"] = largest(one["logprobs"], rough["logprobs"])
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
