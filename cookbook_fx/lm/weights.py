"""The frozen base weights, and how published tensor names map onto them."""

from collections.abc import Callable, Mapping

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from cookbook_fx.errors import ModelError
from cookbook_fx.lm.config import LMConfig
from cookbook_fx.lm.sharding import copied, divided


class LayerWeights(eqx.Module):
    """All decoder layers, stacked on the first axis; matrices are `[in, out]`.

    `qkv` joins the query, key and value projections and `gate_up` the two inputs of the gated
    MLP along their output axis, so that each is one matmul.
    """

    attention_norm: Float[Array, "layer hidden"]
    qkv: Float[Array, "layer hidden qkv"]
    output: Float[Array, "layer heads_x_dim hidden"]
    query_norm: Float[Array, "layer head_dim"] | None
    key_norm: Float[Array, "layer head_dim"] | None
    mlp_norm: Float[Array, "layer hidden"]
    gate_up: Float[Array, "layer hidden two_x_mlp"]
    down: Float[Array, "layer mlp hidden"]


class LMWeights(eqx.Module):
    """A base model. `unembedding` is None where it is tied to the embedding.

    `mesh` is the grid of devices it is divided among; None is one device.
    """

    config: LMConfig = eqx.field(static=True)
    embedding: Float[Array, "vocab hidden"]
    layers: LayerWeights
    final_norm: Float[Array, " hidden"]
    unembedding: Float[Array, "vocab hidden"] | None
    mesh: Mesh | None = eqx.field(static=True, default=None)

    @property
    def head(self) -> Float[Array, "vocab hidden"]:
        """The matrix whose product with a hidden state gives the logits."""
        return self.embedding if self.unembedding is None else self.unembedding


def tensor_names(config: LMConfig) -> tuple[str, ...]:
    """The Hugging Face tensor names a model of this shape consists of."""
    per_layer = [
        "input_layernorm", "post_attention_layernorm",
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    ]  # fmt: skip
    if config.qk_norm:
        per_layer += ["self_attn.q_norm", "self_attn.k_norm"]
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [
        f"model.layers.{i}.{name}.weight" for i in range(config.num_layers) for name in per_layer
    ]
    return tuple(names if config.tie_word_embeddings else [*names, "lm_head.weight"])


def weights_from_tensors(
    config: LMConfig,
    read: Callable[[str], np.ndarray],
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> LMWeights:
    """Assembles a model from its published tensors.

    Args:
        config: the model's shape.
        read: gives the tensor of a Hugging Face name (see `tensor_names`); called once per name.
        dtype: of the returned matrices; norms are float32 at least.
        mesh: devices to divide them among; None is one device.

    Raises:
        ModelError: a tensor has another shape than the config implies.
    """

    def tensor(name: str, *shape: int, dtype: str = dtype) -> np.ndarray:
        array = read(f"{name}.weight")
        if array.shape != shape:
            raise ModelError(
                f"tensor {name}.weight has shape {array.shape}, the config implies {shape}"
            )
        return array.astype(dtype)

    precise = str(jnp.promote_types(dtype, jnp.float32))
    hidden, mlp = config.hidden_size, config.intermediate_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def stack(*parts: tuple[str, int, int]) -> Array:
        # Filled in place: a model is the largest thing in memory, and a second copy may not fit.
        rows, columns = parts[0][2], sum(out for _, out, _ in parts)
        stacked = np.empty((config.num_layers, rows, columns), dtype)
        for layer in range(config.num_layers):
            start = 0
            for name, out, inner in parts:
                stacked[layer, :, start : start + out] = tensor(
                    f"model.layers.{layer}.{name}", out, inner
                ).T
                start += out
        placed: Array = divided(stacked, mesh)
        return placed

    def norms(name: str, size: int) -> Array:
        names = [f"model.layers.{i}.{name}" for i in range(config.num_layers)]
        placed: Array = copied(
            np.stack([tensor(each, size, dtype=precise) for each in names]), mesh
        )
        return placed

    return LMWeights(
        config=config,
        embedding=divided(tensor("model.embed_tokens", config.vocab_size, hidden), mesh),
        layers=LayerWeights(
            attention_norm=norms("input_layernorm", hidden),
            qkv=stack(
                ("self_attn.q_proj", query, hidden),
                ("self_attn.k_proj", key, hidden),
                ("self_attn.v_proj", key, hidden),
            ),
            output=stack(("self_attn.o_proj", hidden, query)),
            query_norm=norms("self_attn.q_norm", config.head_dim) if config.qk_norm else None,
            key_norm=norms("self_attn.k_norm", config.head_dim) if config.qk_norm else None,
            mlp_norm=norms("post_attention_layernorm", hidden),
            gate_up=stack(("mlp.gate_proj", mlp, hidden), ("mlp.up_proj", mlp, hidden)),
            down=stack(("mlp.down_proj", hidden, mlp)),
        ),
        final_norm=copied(tensor("model.norm", hidden, dtype=precise), mesh),
        unembedding=None
        if config.tie_word_embeddings
        else divided(tensor("lm_head", config.vocab_size, hidden), mesh),
        mesh=mesh,
    )


def random_tensors(config: LMConfig, *, seed: int = 0) -> Mapping[str, np.ndarray]:
    """Tensors of a freshly initialised model, by published name: for tests and experiments."""
    rng = np.random.default_rng(seed)
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, mlp = config.hidden_size, config.intermediate_size
    shapes = {
        "embed_tokens": (config.vocab_size, hidden), "lm_head": (config.vocab_size, hidden),
        "q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden),
        "o_proj": (hidden, query),
        "gate_proj": (mlp, hidden), "up_proj": (mlp, hidden), "down_proj": (hidden, mlp),
        "q_norm": (config.head_dim,), "k_norm": (config.head_dim,),
    }  # fmt: skip
    tensors = {}
    for name in tensor_names(config):
        shape = shapes.get(name.split(".")[-2], (hidden,))
        if len(shape) == 1:
            tensors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            tensors[name] = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
    return tensors
