"""The tensor shapes of published models, built from the numbers in their `config.json`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder's sizes; experts, if any, are in all layers but the first `dense`."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int = 0
    tied: bool = False
    experts: int = 0
    expert_mlp: int = 0
    dense: int = 0


LLAMA_1B = Decoder(
    vocab=128256, hidden=2048, layers=16, heads=32, kv_heads=8, head_dim=64, mlp=8192, tied=True
)
LLAMA_3B = Decoder(
    vocab=128256, hidden=3072, layers=28, heads=24, kv_heads=8, head_dim=128, mlp=8192, tied=True
)
LLAMA_8B = Decoder(
    vocab=128256, hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp=14336
)
LLAMA_70B = Decoder(
    vocab=128256, hidden=8192, layers=80, heads=64, kv_heads=8, head_dim=128, mlp=28672
)
QWEN_4B = Decoder(
    vocab=151936, hidden=2560, layers=36, heads=32, kv_heads=8, head_dim=128, mlp=9728, tied=True
)
QWEN_8B = Decoder(
    vocab=151936, hidden=4096, layers=36, heads=32, kv_heads=8, head_dim=128, mlp=12288
)
QWEN_32B = Decoder(
    vocab=151936, hidden=5120, layers=64, heads=64, kv_heads=8, head_dim=128, mlp=25600
)
QWEN_30B_A3B = Decoder(
    vocab=151936, hidden=2048, layers=48, heads=32, kv_heads=4, head_dim=128,
    experts=128, expert_mlp=768,
)  # fmt: skip
QWEN_235B_A22B = Decoder(
    vocab=151936, hidden=4096, layers=94, heads=64, kv_heads=4, head_dim=128,
    experts=128, expert_mlp=1536,
)  # fmt: skip
GPT_OSS_20B = Decoder(
    vocab=201088, hidden=2880, layers=24, heads=64, kv_heads=8, head_dim=64,
    experts=32, expert_mlp=2880,
)  # fmt: skip
DEEPSEEK_V3 = Decoder(
    vocab=129280, hidden=7168, layers=61, heads=128, kv_heads=128, head_dim=128, mlp=18432,
    experts=256, expert_mlp=2048, dense=3,
)  # fmt: skip


def dense(model):
    """Llama and Qwen3, dense or with an expert a tensor."""
    shapes = _ends(model)
    for layer in range(model.layers):
        shapes |= _attention(model, f"model.layers.{layer}")
        shapes |= _feed_forward(model, f"model.layers.{layer}.mlp", layer)
    return shapes


def vision(model):
    """Qwen3-VL: experts in one tensor, and a tower for images."""
    shapes = _ends(model, inner="language_model.")
    for layer in range(model.layers):
        prefix = f"model.language_model.layers.{layer}"
        shapes |= _attention(model, prefix)
        experts, inner, hidden = model.experts, model.expert_mlp, model.hidden
        shapes[f"{prefix}.mlp.gate.weight"] = (experts, hidden)
        shapes[f"{prefix}.mlp.experts.gate_up_proj"] = (experts, hidden, 2 * inner)
        shapes[f"{prefix}.mlp.experts.down_proj"] = (experts, inner, hidden)
    shapes["model.visual.blocks.0.attn.qkv.weight"] = (3456, 1152)
    shapes["model.visual.merger.linear_fc1.weight"] = (4608, 4608)
    return shapes


def gpt_oss(model):
    """4-bit experts in one tensor, with biases and scales."""
    shapes = _ends(model)
    experts, inner, hidden = model.experts, model.expert_mlp, model.hidden
    for layer in range(model.layers):
        prefix = f"model.layers.{layer}"
        shapes |= _attention(model, prefix)
        shapes[f"{prefix}.self_attn.sinks"] = (model.heads,)
        shapes[f"{prefix}.self_attn.q_proj.bias"] = (model.heads * model.head_dim,)
        shapes[f"{prefix}.mlp.router.weight"] = (experts, hidden)
        shapes[f"{prefix}.mlp.router.bias"] = (experts,)
        for name, rows, columns in (("gate_up", 2 * inner, hidden), ("down", hidden, inner)):
            stem = f"{prefix}.mlp.experts.{name}_proj"
            shapes[f"{stem}_blocks"] = (experts, rows, columns // 32, 16)
            shapes[f"{stem}_scales"] = (experts, rows, columns // 32)
            shapes[f"{stem}_bias"] = (experts, rows)
    return shapes


def deepseek(model, *, rope=64, latent=512, query_latent=1536):
    """Latent attention, a shared expert, 8-bit scales, and a layer that guesses ahead."""
    shapes = _ends(model)
    hidden, heads, width = model.hidden, model.heads, model.head_dim
    for layer in range(model.layers + 1):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_a_proj.weight": (query_latent, hidden),
            f"{prefix}.self_attn.q_a_proj.weight_scale_inv": (query_latent // 128, hidden // 128),
            f"{prefix}.self_attn.q_b_proj.weight": (heads * (width + rope), query_latent),
            f"{prefix}.self_attn.kv_a_proj_with_mqa.weight": (latent + rope, hidden),
            f"{prefix}.self_attn.kv_b_proj.weight": (heads * 2 * width, latent),
            f"{prefix}.self_attn.o_proj.weight": (hidden, heads * width),
        }
        shapes |= _feed_forward(model, f"{prefix}.mlp", layer)
        if layer >= model.dense:
            shapes |= _three(f"{prefix}.mlp.shared_experts", hidden, model.expert_mlp)
            shapes[f"{prefix}.mlp.gate.e_score_correction_bias"] = (model.experts,)
    ahead = f"model.layers.{model.layers}"
    shapes[f"{ahead}.eh_proj.weight"] = (hidden, 2 * hidden)
    shapes[f"{ahead}.embed_tokens.weight"] = (model.vocab, hidden)
    shapes[f"{ahead}.shared_head.head.weight"] = (model.vocab, hidden)
    return shapes


def linear_hybrid():
    """Qwen3.5-27B: linear attention in three layers of four, images, guesses ahead."""
    vocab, hidden, mlp, keys, values, heads = 248320, 5120, 17408, 2048, 6144, 48
    shapes = {
        "model.language_model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "mtp.fc.weight": (hidden, 2 * hidden),
        "mtp.layers.0.self_attn.q_proj.weight": (12288, hidden),
        "model.visual.blocks.0.mlp.linear_fc1.weight": (4304, 1152),
    }
    for layer in range(64):
        prefix = f"model.language_model.layers.{layer}"
        shapes |= _three(f"{prefix}.mlp", hidden, mlp)
        if layer % 4 == 3:
            shapes |= {
                f"{prefix}.self_attn.q_proj.weight": (2 * 24 * 256, hidden),
                f"{prefix}.self_attn.k_proj.weight": (4 * 256, hidden),
                f"{prefix}.self_attn.v_proj.weight": (4 * 256, hidden),
                f"{prefix}.self_attn.o_proj.weight": (hidden, 24 * 256),
            }
        else:
            shapes |= {
                f"{prefix}.linear_attn.in_proj_qkv.weight": (2 * keys + values, hidden),
                f"{prefix}.linear_attn.in_proj_z.weight": (values, hidden),
                f"{prefix}.linear_attn.in_proj_a.weight": (heads, hidden),
                f"{prefix}.linear_attn.in_proj_b.weight": (heads, hidden),
                f"{prefix}.linear_attn.conv1d.weight": (2 * keys + values, 1, 4),
                f"{prefix}.linear_attn.out_proj.weight": (hidden, values),
                f"{prefix}.linear_attn.A_log": (heads,),
            }
    return shapes


def _ends(model, inner=""):
    shapes = {
        f"model.{inner}embed_tokens.weight": (model.vocab, model.hidden),
        f"model.{inner}norm.weight": (model.hidden,),
    }
    return shapes if model.tied else shapes | {"lm_head.weight": (model.vocab, model.hidden)}


def _attention(model, prefix):
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    return {
        f"{prefix}.input_layernorm.weight": (model.hidden,),
        f"{prefix}.self_attn.q_proj.weight": (query, model.hidden),
        f"{prefix}.self_attn.k_proj.weight": (key, model.hidden),
        f"{prefix}.self_attn.v_proj.weight": (key, model.hidden),
        f"{prefix}.self_attn.o_proj.weight": (model.hidden, query),
    }


def _feed_forward(model, prefix, layer):
    if not model.experts or layer < model.dense:
        return _three(prefix, model.hidden, model.mlp)
    shapes = {f"{prefix}.gate.weight": (model.experts, model.hidden)}
    for expert in range(model.experts):
        shapes |= _three(f"{prefix}.experts.{expert}", model.hidden, model.expert_mlp)
    return shapes


def _three(prefix, hidden, inner):
    return {
        f"{prefix}.gate_proj.weight": (inner, hidden),
        f"{prefix}.up_proj.weight": (inner, hidden),
        f"{prefix}.down_proj.weight": (hidden, inner),
    }
