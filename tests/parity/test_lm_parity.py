"""Logits and adapter gradients, against transformers and peft on the same weights."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from cookbook_fx import lm
from cookbook_fx.data import Datum
from shell.hub import DEFAULT_MODEL, load_weights, resolve_model

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
PROJECTIONS = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def saved(directory: Path, family: str, *, tied: bool) -> Path:
    """A random model of that family, written by transformers itself."""
    torch.manual_seed(0)
    rope = LLAMA3_ROPE if family == "Llama" else {"rope_type": "default", "rope_theta": 1e6}
    config = getattr(transformers, f"{family}Config")(
        **SIZES, tie_word_embeddings=tied, rope_parameters=rope
    )
    # Larger than usual, so that a mistake anywhere shows in the logits.
    config.initializer_range = 0.2
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(directory)
    return directory


def logits_here(directory: Path, ids: np.ndarray) -> np.ndarray:
    weights = load_weights(directory)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    tokens = lm.Tokens(jnp.asarray(ids), positions, jnp.zeros_like(positions))
    return np.asarray(lm.hidden_states(weights, None, tokens) @ weights.head.T)


def logits_there(directory: Path, ids: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.as_tensor(ids.astype(np.int64))).logits.numpy()


@pytest.mark.parametrize(("family", "tied"), [("Llama", True), ("Llama", False), ("Qwen3", False)])
def test_logits_of_random_models(tmp_path: Path, family: str, *, tied: bool) -> None:
    directory = saved(tmp_path, family, tied=tied)
    ids = np.random.default_rng(0).integers(0, 97, (2, 200)).astype(np.int32)

    np.testing.assert_allclose(
        logits_here(directory, ids), logits_there(directory, ids), atol=1e-3, rtol=0
    )


def test_logits_of_the_default_model() -> None:
    directory = resolve_model(DEFAULT_MODEL, say=lambda _: None).directory
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    ids = np.random.default_rng(0).integers(0, vocabulary, (1, 130)).astype(np.int32)

    np.testing.assert_allclose(
        logits_here(directory, ids), logits_there(directory, ids), atol=1e-3, rtol=0
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapter_gradients_are_those_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    directory = saved(tmp_path, "Llama", tied=True)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 97, 41).astype(np.int64)
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32),
        peft.LoraConfig(r=4, lora_alpha=lm.ALPHA, target_modules=[*PROJECTIONS.values()]),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    logprobs = model(torch.as_tensor(ids[None, :-1])).logits[0].log_softmax(-1)
    (-logprobs[torch.arange(40), torch.as_tensor(ids[1:])].sum()).backward()

    def stacked(kind: str, module: str, *, gradient: bool) -> np.ndarray:
        found = [p for n, p in model.named_parameters() if f"{module}.lora_{kind}" in n]
        return np.stack([(p.grad if gradient else p.detach()).numpy().T for p in found])

    def pair(module: str, *, gradient: bool = False) -> lm.LowRank:
        return lm.LowRank(
            a=jnp.asarray(stacked("A", module, gradient=gradient)),
            b=jnp.asarray(stacked("B", module, gradient=gradient)),
        )

    pairs = {field: pair(module) for field, module in PROJECTIONS.items()}
    adapter = lm.LoRA(scale=lm.ALPHA / 4, unembed=None, **pairs)
    datum = Datum(tokens=ids[:-1].astype(np.int32), target_tokens=ids[1:].astype(np.int32))
    got, _ = lm.forward_backward(
        load_weights(directory), adapter, None, [datum], loss=lm.LossSpec(name="cross_entropy")
    )
    for field, module in PROJECTIONS.items():
        mine, theirs = getattr(got, field), pair(module, gradient=True)
        for part in ("a", "b"):
            expected = getattr(theirs, part)
            tolerance = 1e-4 * float(jnp.abs(expected).max())
            np.testing.assert_allclose(getattr(mine, part), expected, atol=tolerance, rtol=0)
