"""A program that knows only the public Tinker SDK, run as it is against the engine."""

import os
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest

from shell.engine.serve import EngineConfig, embedded_engine


def run(endpoint, *arguments):
    outcome = subprocess.run(
        [sys.executable, Path(__file__).with_name("pig_latin.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=os.sep,
        env=os.environ | {"TINKER_BASE_URL": endpoint.base_url, "TINKER_API_KEY": endpoint.api_key},
    )
    assert outcome.returncode == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    losses = [float(line.split(": ")[1]) for line in lines if line.startswith("loss")]
    answers = [line.split(": ", 1)[1] for line in lines if line.startswith("answer")]
    return losses, answers


def test_it_learns_on_a_tiny_model(tiny_engine, base_model):
    losses, answers = run(tiny_engine, base_model, "12", "0.02")
    assert losses[-1] < 0.5 * losses[0]
    assert len(answers) == 2
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_it_speaks_pig_latin_with_the_default_model(tmp_path):
    with embedded_engine(EngineConfig(state_dir=tmp_path)) as endpoint:
        losses, answers = run(endpoint, "HuggingFaceTB/SmolLM2-135M-Instruct", "24", "0.001")
    assert losses[-1] < 0.2 * losses[0]
    assert [literal_eval(answer).strip() for answer in answers] == ["ick-quay own-bray ox-fay"] * 2
