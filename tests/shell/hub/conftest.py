"""Small GGUF files, written with the reference library's own writer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest

from cookbook_fx.lm.config import LMConfig
from cookbook_fx.lm.weights import random_tensors

WORDS = [chr(0x100 + byte) if byte in range(33) else chr(byte) for byte in range(127)]

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py `permute`, as published."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallGGUF:
    """What was written: the file, and the tensors it stands for by Hugging Face name."""

    path: Path
    config: LMConfig
    tensors: Mapping[str, np.ndarray]


def small_config(*, architecture: str, tied: bool) -> LMConfig:
    return LMConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=8 if architecture == "llama" else 16, rope_theta=1e5,
        rms_norm_eps=1e-5, max_position_embeddings=256, tie_word_embeddings=tied,
        qk_norm=architecture == "qwen3",
    )  # fmt: skip


def gguf_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if module.startswith("model.layers."):
        _, _, layer, inner = module.split(".", 3)
        return f"blk.{layer}.{_GGUF_NAMES[inner]}.weight"
    return f"{_GGUF_NAMES[module]}.weight"


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., SmallGGUF]:
    """Writes a random small model; every part that a test wants wrong can be replaced."""

    def write(
        architecture: str = "llama",
        *,
        tied: bool = True,
        pre: str = "smollm",
        model: str = "gpt2",
        quantised: gguf.GGMLQuantizationType | None = None,
        extra_tensors: Mapping[str, np.ndarray] | None = None,
        without: str | None = None,
        rope_scaling: str | None = None,
        add_bos: bool = False,
        filename: str = "small.gguf",
    ) -> SmallGGUF:
        config = small_config(architecture=architecture, tied=tied)
        tensors = dict(random_tensors(config, seed=3))
        path = tmp_path / filename
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(config.num_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_heads)
        writer.add_head_count_kv(config.num_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if rope_scaling is not None:
            writer.add_string(f"{architecture}.rope.scaling.type", rope_scaling)
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *WORDS[3:-2], "<think>", "ab"]
        kinds = [gguf.TokenType.NORMAL] * len(tokens)
        kinds[:3] = [gguf.TokenType.CONTROL] * 3
        kinds[-2] = gguf.TokenType.USER_DEFINED
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_add_bos_token(add_bos)
        writer.add_chat_template("{{ messages[0]['content'] }}")
        for name, tensor in tensors.items():
            if name == without:
                continue
            stored = tensor
            if architecture == "llama" and "q_proj" in name:
                stored = permute(tensor, config.num_heads)
            if architecture == "llama" and "k_proj" in name:
                stored = permute(tensor, config.num_kv_heads)
            if quantised is not None and stored.ndim == 2:
                blocks = gguf.quants.quantize(stored, quantised)
                writer.add_tensor(gguf_name(name), blocks, raw_dtype=quantised)
            else:
                writer.add_tensor(gguf_name(name), stored)
        for name, tensor in (extra_tensors or {}).items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return SmallGGUF(path=path, config=config, tensors=tensors)

    return write
