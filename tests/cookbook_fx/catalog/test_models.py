import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.catalog import (
    CATALOG,
    Catalog,
    ModelAttributes,
    get_model_attributes,
    get_recommended_renderer_name,
    get_recommended_renderer_names,
    renderer_warning,
    without_suffix,
)
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import RENDERERS
from shell.hub.models import BUILT_IN_MODELS

MINE = ModelAttributes(
    organization="me",
    version_str="1",
    size_str="1B",
    is_chat=True,
    recommended_renderers=("chatml",),
    hidden_size=2000,
)


def test_what_is_known_of_a_model():
    assert get_model_attributes("Qwen/Qwen3-VL-30B-A3B-Instruct") == ModelAttributes(
        organization="Qwen",
        version_str="3",
        size_str="30B-A3B",
        is_chat=True,
        recommended_renderers=("template",),
        is_vl=True,
        is_audio_in=False,
        hidden_size=2048,
    )
    assert get_model_attributes("thinkingmachines/Inkling").is_audio_in


@pytest.mark.parametrize(
    ("name", "renderer"),
    [
        ("meta-llama/Llama-3.1-8B", "role_colon"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3"),
        ("Qwen/Qwen3-8B-Base", "role_colon"),
        ("Qwen/Qwen3-8B", "qwen3"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3_instruct"),
        ("deepseek-ai/DeepSeek-V3.1", "deepseekv3"),
        ("deepseek-ai/DeepSeek-V3.1-Base", "role_colon"),
        ("openai/gpt-oss-20b", "gpt_oss_no_sysprompt"),
        ("moonshotai/Kimi-K2.6", "template"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "chatml"),
        ("smollm2-135m-instruct", "chatml"),
    ],
)
def test_the_renderer_to_use(name, renderer):
    assert get_recommended_renderer_name(name) == renderer


def test_the_default_renderer_comes_first():
    names = get_recommended_renderer_names("openai/gpt-oss-120b")
    assert names[:2] == ("gpt_oss_no_sysprompt", "gpt_oss_medium_reasoning")


@pytest.mark.parametrize("name", sorted(CATALOG.models))
def test_every_entry_fits_its_name(name):
    attributes = CATALOG.attributes(name)
    assert attributes.organization == name.split("/")[0]
    assert attributes.hidden_size is not None
    assert attributes.is_chat == (attributes.recommended_renderers != ("role_colon",))
    if attributes.organization in ("HuggingFaceTB", "meta-llama", "nvidia", "Qwen"):
        assert f"-{attributes.size_str}" in name
        assert attributes.version_str in name


def test_recommended_renderers_exist():
    recommended = {
        name for model in CATALOG.models.values() for name in model.recommended_renderers
    }
    assert recommended <= {*RENDERERS, "template"}


def test_built_in_models_are_known_by_both_their_names():
    for model in BUILT_IN_MODELS:
        assert get_model_attributes(model.name) is get_model_attributes(model.hub_id)


@given(st.sampled_from(sorted(CATALOG.models) + sorted(CATALOG.aliases)), st.text())
def test_a_suffix_changes_nothing(name, suffix):
    assert without_suffix(f"{name}:{suffix}") == name
    assert get_model_attributes(f"{name}:{suffix}") == get_model_attributes(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Qwen/Qwen3-8b", "Qwen/Qwen3-8B"),
        ("Qwen3-8B", "Qwen/Qwen3-8B"),
        ("qwen/qwen3-8b:peft", "Qwen/Qwen3-8B"),
        ("meta/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_what_is_not_known_is_said_with_the_nearest_known(name, near):
    with pytest.raises(ConfigurationError, match="the catalog knows no model") as caught:
        get_model_attributes(name)
    message = str(caught.value)
    assert message.startswith(f"the catalog knows no model {without_suffix(name)!r}")
    assert f"near it are {near}" in message
    assert message.count("/") <= 4


@given(st.text())
def test_no_name_breaks_the_catalog(name):
    if name in CATALOG:
        return
    with pytest.raises(ConfigurationError, match="the catalog knows no model"):
        get_recommended_renderer_names(name)


def test_a_model_far_from_all_others_has_none_near():
    with pytest.raises(ConfigurationError) as caught:
        get_model_attributes("€")
    assert "near" not in str(caught.value)


def test_a_model_is_added_to_a_catalog_of_ones_own():
    catalog = CATALOG.with_model("me/mine-1b", MINE)
    assert get_model_attributes("me/mine-1b:peft", catalog=catalog) is MINE
    assert get_model_attributes("Qwen/Qwen3-8B", catalog=catalog).size_str == "8B"
    assert "me/mine-1b" not in CATALOG


def test_a_model_added_under_a_known_name_takes_its_place():
    for name in ("Qwen/Qwen3-8B", "smollm2-135m-instruct"):
        catalog = CATALOG.with_model(name, MINE)
        assert get_model_attributes(name, catalog=catalog) is MINE
        assert get_model_attributes(name) is not MINE


def test_a_name_that_could_not_be_found_is_not_added():
    with pytest.raises(ConfigurationError, match="want 'me/mine', got 'me/mine:8b'"):
        CATALOG.with_model("me/mine:8b", MINE)


def test_an_empty_catalog():
    assert "Qwen/Qwen3-8B" not in Catalog(models={})


def test_attributes_that_cannot_be_are_refused():
    given_ = {"organization": "me", "version_str": "1", "size_str": "1B", "is_chat": True}
    with pytest.raises(ConfigurationError, match="recommended_renderers"):
        ModelAttributes(**given_, recommended_renderers=())
    with pytest.raises(ConfigurationError, match="`hidden_size` must be at least 1"):
        ModelAttributes(**given_, recommended_renderers=("chatml",), hidden_size=0)


def test_a_renderer_made_for_another_family_is_warned_of():
    assert "made for it: llama3" in renderer_warning("meta-llama/Llama-3.2-1B-Instruct", "chatml")
    assert "made for it: role_colon" in renderer_warning("Qwen/Qwen3-8B-Base", "template")


def test_a_renderer_that_fits_is_not_warned_of():
    assert renderer_warning("Qwen/Qwen3-8B", "qwen3_disable_thinking") is None
    assert renderer_warning("Qwen/Qwen3-8B", "template") is None
    assert renderer_warning("me/unknown", "chatml") is None


def test_the_room_starts_without_numeric_libraries():
    program = "import cookbook_fx.catalog, sys; print(sorted({'jax', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
