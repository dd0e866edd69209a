import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.catalog import (
    CATALOG,
    LoRAParts,
    get_full_finetune_param_count,
    get_hidden_size,
    get_lora_param_count,
    lora_params_per_rank,
)
from cookbook_fx.errors import ConfigurationError, ModelError
from cookbook_fx.lm.config import LMConfig
from cookbook_fx.lm.lora import LoRAConfig, init_lora
from cookbook_fx.lm.weights import random_tensors
from tests.cookbook_fx.catalog.published import (
    DEEPSEEK_V3,
    GPT_OSS_20B,
    LLAMA_1B,
    LLAMA_3B,
    LLAMA_8B,
    LLAMA_70B,
    QWEN_4B,
    QWEN_8B,
    QWEN_30B_A3B,
    QWEN_32B,
    QWEN_235B_A22B,
    deepseek,
    dense,
    gpt_oss,
    linear_hybrid,
    vision,
)

EMBEDDING = {"model.embed_tokens.weight": (50, 8)}
ATTENTION = {"model.layers.0.self_attn.q_proj.weight": (16, 8)}
FEED_FORWARD = {"model.layers.0.mlp.up_proj.weight": (24, 8)}
SMALL = EMBEDDING | ATTENTION | FEED_FORWARD


# What tinker-cookbook 0.5.8 states for each model, measured on the engine it speaks to.
@pytest.mark.parametrize(
    ("name", "shapes", "per_rank"),
    [
        ("meta-llama/Llama-3.2-1B", lambda: dense(LLAMA_1B), (491_520, 212_992, 130_304)),
        ("meta-llama/Llama-3.2-3B", lambda: dense(LLAMA_3B), (946_176, 573_440, 131_328)),
        ("meta-llama/Llama-3.1-8B", lambda: dense(LLAMA_8B), (1_769_472, 851_968, 132_352)),
        ("meta-llama/Llama-3.1-70B", lambda: dense(LLAMA_70B), (8_847_360, 4_096_000, 136_448)),
        ("Qwen/Qwen3-4B-Instruct-2507", lambda: dense(QWEN_4B), (1_327_104, 737_280, 154_496)),
        ("Qwen/Qwen3-8B", lambda: dense(QWEN_8B), (1_769_472, 958_464, 156_032)),
        ("Qwen/Qwen3-32B", lambda: dense(QWEN_32B), (5_898_240, 2_490_368, 157_056)),
        ("Qwen/Qwen3-30B-A3B", lambda: dense(QWEN_30B_A3B), (14_450_688, 835_584, 153_984)),
        (
            "Qwen/Qwen3-235B-A22B-Instruct-2507",
            lambda: dense(QWEN_235B_A22B),
            (56_598_528, 3_176_448, 156_032),
        ),
        (
            "Qwen/Qwen3-VL-30B-A3B-Instruct",
            lambda: vision(QWEN_30B_A3B),
            (14_450_688, 835_584, 153_984),
        ),
        ("Qwen/Qwen3.5-27B", linear_hybrid, (4_325_376, 2_965_504, 253_440)),
        ("openai/gpt-oss-20b", lambda: gpt_oss(GPT_OSS_20B), (6_842_880, 497_664, 203_968)),
        (
            "deepseek-ai/DeepSeek-V3.1",
            lambda: deepseek(DEEPSEEK_V3),
            (94_307_328, 2_440_000, 136_448),
        ),
    ],
)
def test_lora_parameters_as_published(name, shapes, per_rank):
    assert lora_params_per_rank(shapes()) == LoRAParts(*per_rank)
    assert get_hidden_size(shapes()) == CATALOG.attributes(name).hidden_size


@pytest.mark.parametrize(
    ("model", "count"), [(LLAMA_8B, 88_121_344), (QWEN_8B, 92_286_976)], ids=["Llama", "Qwen3"]
)
def test_a_lora_of_rank_32_as_published(model, count):
    assert get_lora_param_count(dense(model)) == count


def test_all_parameters_of_published_models():
    # Less the second norm of each layer, which is left out here.
    assert get_full_finetune_param_count(dense(LLAMA_1B)) == 1_235_814_400 - 16 * 2048
    assert get_full_finetune_param_count(dense(LLAMA_8B)) == 8_030_261_248 - 32 * 4096


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("part", ["mlp", "attn", "unembed"])
def test_the_count_is_that_of_the_library_s_own_lora(part, tied):
    config = LMConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5,
        max_position_embeddings=64, tie_word_embeddings=tied, qk_norm=True,
    )  # fmt: skip
    trained = {f"train_{other}": other == part for other in ("mlp", "attn", "unembed")}
    lora = jax.eval_shape(lambda: init_lora(config, LoRAConfig(rank=3, **trained)))
    shapes = {name: tensor.shape for name, tensor in random_tensors(config).items()}
    made = sum(leaf.size for leaf in jax.tree.leaves(lora))
    assert made == get_lora_param_count(shapes, rank=3, **trained)


def test_parts_by_hand():
    assert lora_params_per_rank(SMALL) == LoRAParts(mlp=32, attn=24, unembed=58)
    assert get_lora_param_count(SMALL, rank=1, train_attn=False, train_unembed=False) == 32
    assert get_lora_param_count(SMALL, rank=2, train_mlp=False, train_unembed=False) == 48
    assert get_lora_param_count(SMALL, rank=3, train_mlp=False, train_attn=False) == 174


def test_an_output_layer_of_its_own_counts_instead_of_the_embeddings():
    shapes = SMALL | {"lm_head.weight": (60, 8)}
    assert lora_params_per_rank(shapes).unembed == 68


def test_experts_share_the_side_of_the_residual_stream():
    experts = {f"model.layers.{layer}.mlp.experts.{expert}.{module}.weight": shape
               for layer in (0, 1) for expert in range(3)
               for module, shape in (("up_proj", (5, 8)), ("down_proj", (8, 5)))}  # fmt: skip
    assert lora_params_per_rank(EMBEDDING | ATTENTION | experts).mlp == 2 * 2 * (3 * 5 + 8)


def test_a_fused_projection_counts_its_input_for_every_part():
    shapes = EMBEDDING | {
        "model.layers.0.self_attn.qkv_proj.weight": (20, 8),
        "model.layers.0.mlp.gate_up_proj.weight": (30, 8),
    }
    assert lora_params_per_rank(shapes)[:2] == (30 + 2 * 8, 20 + 3 * 8)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.shared_expert_gate.weight",
        "model.layers.0.mlp.up_proj.weight_scale_inv",
        "model.layers.0.self_attn.q_b_proj.weight",
        "model.visual.layers.0.mlp.up_proj.weight",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "vision_tower.embed_tokens.weight",
        "mtp.layers.0.mlp.up_proj.weight",
        "model.layers",
        "model.layers.0",
    ],
)
def test_what_is_not_adapted(name):
    assert lora_params_per_rank({name: (7, 7)} | SMALL) == lora_params_per_rank(SMALL)


def test_only_matrices_are_adapted():
    others = {
        "model.layers.0.input_layernorm.weight": (8,),
        "model.layers.0.self_attn.conv1d.weight": (8, 1, 4),
        "model.layers.0.self_attn.q_proj.bias": (16,),
    }
    assert lora_params_per_rank(SMALL | others) == lora_params_per_rank(SMALL)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"model.layers.0.mixer.in_proj.weight": (9, 8)}, "mixer.in_proj.weight is neither in an"),
        ({"encoder.layers.0.mlp.up_proj.weight": (9, 8)}, "not known to be the language model's"),
        ({"model.layers.0.mlp.up_proj.weight_packed": (9, 1)}, "before quantisation"),
        ({"model.layers.0.mlp.up_proj.qweight": (9, 1)}, "before quantisation"),
        ({"model.layers.0.mlp.up_proj.weight.absmax": (9,)}, "before quantisation"),
        ({"model.layers.0.mlp.experts.0.up_proj.weight": (9, 7)}, "must be 8 rows or columns"),
        ({"model.layers.0.mlp.experts.down_proj": (4, 9, 7)}, "must be 8 rows or columns"),
    ],
)
def test_what_is_not_known_is_refused_by_name(extra, message):
    with pytest.raises(ModelError, match=message):
        lora_params_per_rank(SMALL | extra)


def test_names_of_no_known_kind_are_refused():
    with pytest.raises(ModelError, match="no input embeddings were found"):
        lora_params_per_rank({"transformer.wte.weight": (50, 8)})
    with pytest.raises(ModelError, match="no attention or no feed-forward layers"):
        lora_params_per_rank(EMBEDDING | {"h.0.attn.c_attn.weight": (8, 24)})
    with pytest.raises(ModelError, match="no attention or no feed-forward layers"):
        lora_params_per_rank(EMBEDDING | FEED_FORWARD)


def test_a_lora_of_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="at least one of mlp, attn and unembed"):
        get_lora_param_count(SMALL, train_mlp=False, train_attn=False, train_unembed=False)
    with pytest.raises(ConfigurationError, match="rank must be at least 1, got 0"):
        get_lora_param_count(SMALL, rank=0)


words = st.sampled_from(
    ["model", "layers", "0", "1", "mlp", "experts", "self_attn", "up_proj", "weight", "eh_proj",
     "gate_up_proj_blocks", "embed_tokens", "lm_head", ""]
)  # fmt: skip


@given(
    st.dictionaries(
        st.lists(words, max_size=8).map(".".join),
        st.lists(st.integers(0, 9), max_size=4).map(tuple),
    )
)
def test_no_names_break_the_count(shapes):
    try:
        parts = lora_params_per_rank(SMALL | shapes)
    except ModelError:
        return
    assert min(parts) >= 0
