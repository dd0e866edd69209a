"""What commands say about the options they are given."""

import pytest

from shell.cli.options import warn_of_renderer


def test_a_renderer_made_for_other_models_is_warned_of():
    said = []
    warn_of_renderer("llama3", model="HuggingFaceTB/SmolLM2-135M-Instruct", say=said.append)
    assert len(said) == 1
    assert said[0].startswith("Warning: the renderer llama3 is not made for smollm2-135m-instruct")
    assert said[0].endswith("made for it: chatml.")


@pytest.mark.parametrize("model", ["smollm2-135m-instruct", "someone/unknown"])
def test_a_renderer_that_may_well_be_right_is_not_warned_of(model):
    warn_of_renderer("chatml", model=model, say=pytest.fail)
