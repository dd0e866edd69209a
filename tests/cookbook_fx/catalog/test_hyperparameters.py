import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.catalog import (
    CATALOG,
    ModelAttributes,
    get_full_finetune_lr_multiplier,
    get_full_finetune_param_count,
    get_lora_lr_multiplier,
    get_lr,
)
from cookbook_fx.errors import ConfigurationError, ModelError
from tests.cookbook_fx.catalog.published import QWEN_8B, dense

UNKNOWN_WIDTH = ModelAttributes(
    organization="me",
    version_str="1",
    size_str="1B",
    is_chat=True,
    recommended_renderers=("qwen3",),
)


@pytest.mark.parametrize(
    ("name", "lr"),
    [
        ("meta-llama/Llama-3.2-1B", "4.908e-04"),
        ("meta-llama/Llama-3.1-8B", "2.856e-04"),
        ("meta-llama/Llama-3.1-70B", "1.662e-04"),
        ("Qwen/Qwen3-8B", "4.730e-04"),
        ("Qwen/Qwen3-30B-A3B", "4.991e-04"),
        ("Qwen/Qwen3-8B:peft", "4.730e-04"),
    ],
)
def test_learning_rates_as_published(name, lr):
    assert f"{get_lr(name):.3e}" == lr


def test_all_weights_learn_at_a_tenth_of_the_rate():
    name = "meta-llama/Llama-3.1-8B"
    assert get_lr(name, is_lora=False) == pytest.approx(get_lr(name) / 10, rel=1e-12)


def test_the_formula_for_a_model_that_is_not_in_the_catalog():
    assert get_lr("me/Llama-mini", hidden_size=1000) == pytest.approx(5e-4 * 2**0.781)
    assert get_lr("me/My-QWEN", hidden_size=2000) == pytest.approx(5e-4)


@given(st.integers(1, 10**6))
def test_wider_models_learn_more_slowly(width):
    assert get_lr("llama", hidden_size=width + 1) < get_lr("llama", hidden_size=width)


@pytest.mark.parametrize(
    "name", ["openai/gpt-oss-20b", "thinkingmachines/Inkling", "smollm2-135m-instruct", "me/other"]
)
def test_other_families_are_not_calibrated(name):
    with pytest.raises(ConfigurationError, match=f"no learning rate is calibrated for '{name}'"):
        get_lr(name, hidden_size=2000)


def test_a_model_of_unknown_width_is_said():
    with pytest.raises(ConfigurationError, match=r"no model 'Qwen/Qwen3-9B'; near it are Qwen/"):
        get_lr("Qwen/Qwen3-9B")
    catalog = CATALOG.with_model("me/qwen", UNKNOWN_WIDTH)
    with pytest.raises(ConfigurationError, match="how wide 'me/qwen' is; give `hidden_size`"):
        get_lr("me/qwen", catalog=catalog)
    assert get_lr("me/qwen", hidden_size=2000, catalog=catalog) == pytest.approx(5e-4)


def test_a_width_that_cannot_be_is_refused():
    with pytest.raises(ConfigurationError, match="`hidden_size` must be at least 1, got 0"):
        get_lr("Qwen/Qwen3-8B", hidden_size=0)


def test_multipliers_fall_with_the_root_of_the_size():
    shapes = dense(QWEN_8B)
    expected = 1 / math.sqrt(get_full_finetune_param_count(shapes))
    assert get_full_finetune_lr_multiplier(shapes) == expected
    assert get_lora_lr_multiplier(shapes) == 10 * expected


def test_a_model_of_no_tensors_has_no_multiplier():
    with pytest.raises(ModelError, match="shapes of a model's tensors are wanted, got none"):
        get_lora_lr_multiplier({})
