"""GGUF files rewritten as Hugging Face directories: config, float32 safetensors, tokenizer.

A GGUF file is llama.cpp's: one file of metadata and (mostly quantised) tensors.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor, TokenType
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from cookbook_fx.errors import ModelError
from cookbook_fx.lm.config import config_from_hf
from cookbook_fx.lm.weights import tensor_names

# Tensors are written in files of at most this size, so that a model larger than memory converts.
_SHARD_BYTES = 4 * 1024**3

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}

_MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(source: Path, directory: Path) -> None:
    """Writes `source` into the existing, empty `directory` as transformers would save the model.

    Raises:
        ModelError: the file is torn, is one part of several, or holds an architecture, tensor,
            RoPE variant or tokenizer that is not implemented; named.
    """
    file = _GGUF(source)
    config = _config(file)
    _write_tokenizer(file, directory)
    _write_tensors(file, config, directory)
    _write_json(directory / "config.json", config)


class _GGUF:
    """Metadata by key and tensors by name, with errors that name the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise ModelError(
                f"{path} cannot be read as a GGUF file (torn or of another kind): {error}"
            ) from error
        self._fields = reader.fields
        self.tensors: Mapping[str, ReaderTensor] = {
            tensor.name: tensor for tensor in reader.tensors
        }
        self.architecture: str = self["general.architecture"]
        if self.get("split.count", 1) > 1:
            raise ModelError(
                f"{path} is one part of several; join them first with llama-gguf-split --merge"
            )
        if "token_embd.weight" not in self.tensors:
            raise ModelError(
                f"{path} lacks the tensor token_embd.weight, so it holds no language model"
            )
        if self.architecture not in _ARCHITECTURES:
            raise ModelError(
                f"{path} holds the architecture {self.architecture!r}; "
                f"supported: {', '.join(_ARCHITECTURES)}"
            )

    def get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def __getitem__(self, key: str) -> Any:
        if key not in self._fields:
            raise ModelError(f"{self.path} lacks the metadata key {key!r}")
        return self.get(key)

    def of_model(self, key: str, default: Any = None) -> Any:
        """A key under the architecture's own prefix; required unless there is a default."""
        key = f"{self.architecture}.{key}"
        return self[key] if default is None else self.get(key, default)


def _config(file: _GGUF) -> dict[str, Any]:
    if file.of_model("expert_count", 0):
        raise ModelError(f"{file.path} is a mixture of experts; only dense models are supported")
    heads, hidden = file.of_model("attention.head_count"), file.of_model("embedding_length")
    config = {
        "architectures": [_ARCHITECTURES[file.architecture]],
        "model_type": file.architecture,
        "vocab_size": int(file.tensors["token_embd.weight"].shape[1]),
        "hidden_size": hidden,
        "intermediate_size": file.of_model("feed_forward_length"),
        "num_hidden_layers": file.of_model("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.of_model("attention.head_count_kv", heads),
        "head_dim": file.of_model("attention.key_length", hidden // heads),
        "rope_theta": _shortest(file.of_model("rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(file),
        "rms_norm_eps": _shortest(file.of_model("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": file.of_model("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.get("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }
    return {key: value for key, value in config.items() if value is not None}


def _shortest(value: float) -> float:
    """The decimal that was meant: GGUF keeps 1e-05 as the float32 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(file: _GGUF) -> dict[str, Any] | None:
    kind = file.of_model("rope.scaling.type", "none")
    if kind != "none":
        raise ModelError(f"{file.path} uses RoPE scaling {kind!r}, which is not supported")
    if "rope_freqs.weight" not in file.tensors:
        return None
    # Llama 3.1 and later: the file holds only the divisors that the four numbers below give.
    stored = _array(file.tensors["rope_freqs.weight"])
    factor, low, high, original = float(stored.max()), 1.0, 4.0, 8192
    head_dim = 2 * stored.size
    frequencies = file.of_model("rope.freq_base", 10_000.0) ** (
        -np.arange(0, head_dim, 2) / head_dim
    )
    turns = original * frequencies / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    if not np.allclose(stored, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        raise ModelError(
            f"{file.path} scales RoPE frequencies in a way that is not Llama 3's; not supported"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _array(tensor: ReaderTensor) -> np.ndarray:
    """Dequantised to float32, in row-major order: GGUF lists dimensions innermost first."""
    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ModelError(
            f"tensor {tensor.name} is quantised as {tensor.tensor_type.name}: {error}"
        ) from error
    return values.astype(np.float32, copy=False).reshape(
        [int(size) for size in reversed(tensor.shape)]
    )


def _hf_name(file: _GGUF, name: str) -> str:
    module, _, suffix = name.rpartition(".")
    prefix = ""
    if module.startswith("blk."):
        _, layer, module = module.split(".", 2)
        prefix = f"model.layers.{layer}."
    if suffix != "weight" or module not in _MODULES:
        raise ModelError(
            f"{file.path} holds a tensor that a {file.architecture} does not have: {name}"
        )
    return f"{prefix}{_MODULES[module]}.weight"


def unpermute(weight: np.ndarray, *, heads: int) -> np.ndarray:
    """Undoes llama.cpp's reordering of a llama's query or key projection.

    llama.cpp rotates neighbouring pairs (0,1), (2,3), …; Hugging Face rotates the two halves of a
    head against each other, (0, d/2), (1, d/2+1), …. The rows of W are stored for the former.

    Args:
        weight: `[heads·head_dim, in]` as in the file.
        heads: query heads for the query projection, KV heads for the key projection.

    Returns:
        The same rows in Hugging Face's order.
    """
    out, inner = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, inner).swapaxes(1, 2).reshape(out, inner)


def _hf_tensor(file: _GGUF, config: Mapping[str, Any], name: str) -> np.ndarray:
    weight = _array(file.tensors[name])
    if file.architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
        kind = "num_attention_heads" if name.endswith("attn_q.weight") else "num_key_value_heads"
        weight = unpermute(weight, heads=config[kind])
    return np.ascontiguousarray(weight)


def _shards(file: _GGUF) -> Iterator[dict[str, str]]:
    """GGUF name -> Hugging Face name, in groups that fit one file each."""
    shard: dict[str, str] = {}
    size = 0
    for name, tensor in file.tensors.items():
        if name == "rope_freqs.weight":  # became config.json's rope_scaling
            continue
        tensor_bytes = 4 * int(tensor.n_elements)
        if shard and size + tensor_bytes > _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = _hf_name(file, name)
        size += tensor_bytes
    yield shard


def _write_tensors(file: _GGUF, config: Mapping[str, Any], directory: Path) -> None:
    shards = list(_shards(file))
    held = {hf_name for shard in shards for hf_name in shard.values()}
    for name in tensor_names(config_from_hf(config)):
        if name not in held:
            raise ModelError(f"{file.path} lacks a tensor that a {file.architecture} has: {name}")
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        filename = "model.safetensors"
        if len(shards) > 1:
            filename = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {hf_name: _hf_tensor(file, config, name) for name, hf_name in shard.items()}
        save_file(tensors, directory / filename, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, filename))
    if len(shards) > 1:
        total = sum(4 * int(file.tensors[name].n_elements) for shard in shards for name in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PreTokenizer:
    """How text is cut before byte-pair merging, by the name llama.cpp gives it."""

    steps: tuple[pre_tokenizers.PreTokenizer, ...]
    normalizer: normalizers.Normalizer | None = None
    ignore_merges: bool = False


def _split(pattern: str) -> tuple[pre_tokenizers.PreTokenizer, ...]:
    return (
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_PRE_TOKENIZERS = {
    "gpt-2": _PreTokenizer(steps=(_GPT2,)),
    "smollm": _PreTokenizer(steps=(pre_tokenizers.Digits(individual_digits=True), _GPT2)),
    "llama-bpe": _PreTokenizer(steps=_split(_WORDS + r"\p{N}{1,3}" + _REST), ignore_merges=True),
    "qwen2": _PreTokenizer(steps=_split(_WORDS + r"\p{N}" + _REST), normalizer=normalizers.NFC()),
}


def _tokenizer(file: _GGUF) -> Tokenizer:
    model, kind = file["tokenizer.ggml.model"], file.get("tokenizer.ggml.pre", "unnamed")
    if model != "gpt2" or kind not in _PRE_TOKENIZERS:
        raise ModelError(
            f"{file.path} needs the tokenizer model {model!r} with pre-tokenizer {kind!r}; "
            f"supported: 'gpt2' with one of {', '.join(_PRE_TOKENIZERS)}. "
            "Use the model's Hugging Face directory, which brings its own tokenizer.json."
        )
    tokens: list[str] = file["tokenizer.ggml.tokens"]
    types: list[int] = file["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in file["tokenizer.ggml.merges"]]
    pre = _PRE_TOKENIZERS[kind]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.ignore_merges)
    )
    if pre.normalizer is not None:
        tokenizer.normalizer = pre.normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(pre.steps))
    tokenizer.decoder = decoders.ByteLevel()
    added = (TokenType.CONTROL, TokenType.USER_DEFINED)
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == TokenType.CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in added
        ]
    )
    if file.get("tokenizer.ggml.add_bos_token", False):
        index = file["tokenizer.ggml.bos_token_id"]
        begin = tokens[index]
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{begin} $A",
                    pair=f"{begin} $A {begin}:1 $B:1",
                    special_tokens=[(begin, index)],
                ),
            ]
        )
    return tokenizer


def _write_tokenizer(file: _GGUF, directory: Path) -> None:
    _tokenizer(file).save(str(directory / "tokenizer.json"))
    tokens = file["tokenizer.ggml.tokens"]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.of_model("context_length"),
        "add_bos_token": file.get("tokenizer.ggml.add_bos_token", False),
        "chat_template": file.get("tokenizer.chat_template"),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = file.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            settings[f"{name}_token"] = tokens[index]
    kept = {key: value for key, value in settings.items() if value is not None}
    _write_json(directory / "tokenizer_config.json", kept)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
