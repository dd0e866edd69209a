"""Help that is there at once and tells a newcomer everything."""

import dataclasses
import subprocess
import sys
from typing import get_args

import pytest

from cookbook_fx.numerics import SCHEDULES
from cookbook_fx.renderers import TrainOnWhat
from shell.cli.main import main
from shell.cli.models import Models
from shell.cli.sample import Sample
from shell.cli.serve import Serve
from shell.cli.sft import SFT
from shell.cli.show import Show
from shell.training import Adam, Cadence, ChatData, ModelChoice, Schedule
from shell.training.config import LearningRateSchedule, TrainedMessages


def shown(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


def test_help_loads_nothing_heavy():
    program = (
        "import sys, shell.cli.main\n"
        "heavy = {'jax', 'tinker', 'transformers', 'orbax', 'equinox', 'numpy', 'datasets'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_the_overview_names_every_command_and_a_first_step(capsys):
    text = shown(capsys)
    for name in ("sft", "sample", "show", "serve", "models"):
        assert f"• {name} " in text
    assert "$ cookbook-fx sft\n" in text


@pytest.mark.parametrize("name", ["sft", "sample", "show", "serve"])
def test_every_command_shows_an_example(capsys, name):
    assert f"$ cookbook-fx {name}" in shown(capsys, name)


@pytest.mark.parametrize(
    "config", [SFT, Sample, Show, Serve, Models, ModelChoice, ChatData, Schedule, Adam, Cadence]
)
def test_every_option_is_explained(config):
    for field in dataclasses.fields(config):
        assert f"        {field.name}: " in config.__doc__, field.name


def test_options_are_flat_and_mean_the_same_in_every_command(capsys):
    texts = {name: shown(capsys, name) for name in ("sft", "sample", "show", "serve")}
    assert all("--model " in text for text in texts.values())
    assert all("--base-url URL" in texts[name] for name in ("sft", "sample"))
    assert all("--seed INT" in texts[name] for name in ("sft", "sample"))
    assert "--run-dir PATH" in texts["sft"]
    assert "--max-steps " in texts["sft"]


def test_names_spelled_out_for_speed_are_the_real_ones():
    assert set(get_args(TrainedMessages)) == {choice.value for choice in TrainOnWhat}
    assert set(get_args(LearningRateSchedule)) == set(SCHEDULES)
