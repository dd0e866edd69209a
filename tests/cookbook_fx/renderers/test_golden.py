"""Every token and weight against answers known to be right, with the families' own tokenizers."""

import pytest

from cookbook_fx.errors import CookbookError
from cookbook_fx.renderers import RENDERERS, TrainOnWhat, get_renderer
from tests.family_tokenizers import Unreachable, real_tokenizer
from tests.renderer_golden import as_upstream, golden, rendered, unpacked

FAMILIES = {"deepseek_v31": "deepseekv3", "gptoss": "gpt_oss", "llama3_plain": "llama3"} | {
    "qwen3_instruct": "qwen3"
}
# The golden file's names, where the library's are others.
NAMES = {
    "qwen3_keep": "qwen3_keep_thinking",
    "deepseekv3_thinking_keep": "deepseekv3_keep_thinking",
}


@pytest.fixture(params=sorted(golden()["renderers"]))
def case_set(request):
    expected = golden()["renderers"][request.param]
    family = FAMILIES.get(expected["family"], expected["family"])
    name = request.param.split("@")[0]
    name = NAMES.get(name, name)
    if name not in RENDERERS:
        pytest.skip(f"{name} is not written yet")
    try:
        return get_renderer(name, real_tokenizer(family)), expected
    except Unreachable as error:
        pytest.skip(str(error))


def test_tokens_and_weights(case_set):
    renderer, expected = case_set
    wrong = []
    for case in expected["render"]:
        try:
            if rendered(renderer, case) != case["tokens"]:
                wrong.append((case["what"], case["id"]))
        except CookbookError:
            if case["tokens"] is not None:
                wrong.append((case["what"], case["id"], "refused"))
        for option, weights in case.get("weights", {}).items():
            try:
                if rendered(renderer, case, TrainOnWhat(option)) != unpacked(weights or []):
                    wrong.append((option, case["id"]))
            except CookbookError:
                if weights is not None:
                    wrong.append((option, case["id"], "refused"))
    assert wrong == []


def test_parsed_responses(case_set):
    renderer, expected = case_set
    wrong = []
    for case in expected["parse"]:
        parsed = renderer.parse_response(case["tokens"])
        if (as_upstream(parsed.message), str(parsed.termination)) != (
            case.get("message"), case.get("termination"),
        ):  # fmt: skip
            wrong.append(case["id"])
    assert wrong == []


def test_stops(case_set):
    renderer, expected = case_set
    assert list(renderer.get_stop_sequences()) == expected["stops"]
