"""Exported adapters and merged models, loaded by peft and transformers: the same logits as ours."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cookbook_fx import lm
from shell.hub.adapters import read_adapter, write_adapter, write_merged
from shell.hub.weights import load_weights

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning")]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128,
}  # fmt: skip
FAMILIES = pytest.mark.parametrize(
    ("family", "tied"), [("Llama", True), ("Llama", False), ("Qwen3", True), ("Qwen3", False)]
)
IDS = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 40))
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}


def saved(directory: Path, family: str, *, tied: bool) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, tie_word_embeddings=tied)
    config.initializer_range = 0.2
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(directory)
    return directory


def adapter_for(directory: Path, **parts: bool) -> lm.LoRA:
    """As after some training: B is not zero."""
    rng = np.random.default_rng(1)
    fresh = lm.init_lora(load_weights(directory).config, lm.LoRAConfig(rank=5, seed=3, **parts))
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), fresh)


def logits_here(directory: Path, adapter: lm.LoRA | None) -> np.ndarray:
    weights, ids = load_weights(directory), jnp.asarray(IDS, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden = lm.hidden_states(
        weights, adapter, lm.Tokens(ids, positions, jnp.zeros_like(positions))
    )
    logits = hidden @ weights.head.T
    if adapter is not None and adapter.unembed is not None:
        logits += adapter.scale * (hidden @ adapter.unembed.a) @ adapter.unembed.b
    return np.asarray(logits)


def of_model(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.as_tensor(IDS)).logits.numpy()


def transformers_model(directory: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@FAMILIES
@pytest.mark.parametrize(
    "parts", [{}, {"train_unembed": False}, {"train_attn": False, "train_mlp": False}]
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_peft_and_transformers_get_our_logits(tmp_path, family, parts, *, tied):
    base = saved(tmp_path / "base", family, tied=tied)
    adapter = adapter_for(base, **parts)
    ours = logits_here(base, adapter)
    assert np.abs(ours - logits_here(base, None)).max() > 0.1

    write_adapter(tmp_path / "adapter", adapter, base_model=str(base), overwrite=False)
    with_peft = peft.PeftModel.from_pretrained(transformers_model(base), tmp_path / "adapter")
    np.testing.assert_allclose(of_model(with_peft), ours, **TOLERANCE)

    write_merged(tmp_path / "merged", adapter, base=base, overwrite=False)
    np.testing.assert_allclose(of_model(transformers_model(tmp_path / "merged")), ours, **TOLERANCE)
    np.testing.assert_allclose(logits_here(tmp_path / "merged", None), ours, **TOLERANCE)


@FAMILIES
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 16},
        {"target_modules": "all-linear", "lora_alpha": 24, "use_rslora": True},
        {"target_modules": ["down_proj", "o_proj"], "layers_to_transform": [1]},
        {"target_modules": ["lm_head", "up_proj"], "lora_alpha": 8},
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_an_adapter_of_pefts_has_the_same_effect_here(tmp_path, family, options, *, tied):
    base = saved(tmp_path / "base", family, tied=tied)
    config = peft.LoraConfig(r=6, init_lora_weights=False, **options)
    model = peft.get_peft_model(transformers_model(base), config)
    model.save_pretrained(tmp_path / "adapter")
    lora, adapter = read_adapter(tmp_path / "adapter", base=base)
    assert lora.rank == 6
    np.testing.assert_allclose(logits_here(base, adapter), of_model(model), **TOLERANCE)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_what_cannot_be_represented_is_named(tmp_path, options, named):
    base = saved(tmp_path / "base", "Llama", tied=False)
    config = peft.LoraConfig(**({"r": 4, "target_modules": ["q_proj"]} | options))
    peft.get_peft_model(transformers_model(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=named):
        read_adapter(tmp_path / "adapter", base=base)
