"""Help that is there at once and tells a newcomer everything."""

import dataclasses
import subprocess
import sys
from typing import get_args

import pytest

from cookbook_fx.numerics import SCHEDULES
from cookbook_fx.renderers import TrainOnWhat
from shell.cli.dpo import DPO
from shell.cli.main import main
from shell.cli.models import Models
from shell.cli.rl import RL
from shell.cli.sample import Sample
from shell.cli.serve import Serve
from shell.cli.sft import SFT
from shell.cli.show import Show
from shell.recipes.rl import config as rl_config
from shell.training import (
    Adam,
    Cadence,
    ChatData,
    ModelChoice,
    PreferenceChoice,
    PreferenceData,
    Schedule,
)
from shell.training.config import LearningRateSchedule, TrainedMessages

RECIPE_CONFIGS = [
    "Arithmetic", "GuessNumber", "Math", "ReasoningGym",
    "Groups", "Learning", "Pace", "Sampling", "Episodes",
]  # fmt: skip


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
    for name in ("sft", "dpo", "rl", "sample", "show", "serve", "models"):
        assert f"• {name} " in text
    assert "$ cookbook-fx sft\n" in text


@pytest.mark.parametrize("name", ["sft", "dpo", "rl", "sample", "show", "serve"])
def test_every_command_shows_an_example(capsys, name):
    assert f"$ cookbook-fx {name}" in shown(capsys, name)


@pytest.mark.parametrize(
    "config",
    [
        *(SFT, DPO, RL, Sample, Show, Serve, Models),
        *(ModelChoice, ChatData, PreferenceData, PreferenceChoice, Schedule, Adam, Cadence),
    ],
)
def test_every_option_is_explained(config):
    for field in dataclasses.fields(config):
        assert f"        {field.name}: " in config.__doc__, field.name


@pytest.mark.parametrize("name", RECIPE_CONFIGS)
def test_every_option_of_reinforcement_learning_is_explained(name):
    config = getattr(rl_config, name)
    for field in dataclasses.fields(config):
        assert f"        {field.name}: " in config.__doc__, field.name


def test_the_tasks_of_rl_are_named_and_each_has_its_own_help(capsys):
    text = shown(capsys, "rl")
    for name in ("arithmetic", "guess-number", "math", "reasoning-gym"):
        assert f"• {name} " in text
    own = shown(capsys, "rl", "math")
    assert "--question-field STR" in own
    assert "--run-dir PATH" in own


def test_options_are_flat_and_mean_the_same_in_every_command(capsys):
    texts = {name: shown(capsys, name) for name in ("sft", "dpo", "rl", "sample", "show", "serve")}
    assert all("--model " in text for text in texts.values())
    assert all("--base-url URL" in texts[name] for name in ("sft", "dpo", "rl", "sample"))
    assert all("--seed INT" in texts[name] for name in ("sft", "dpo", "rl", "sample"))
    assert all("--run-dir PATH" in texts[name] for name in ("sft", "rl"))
    assert all("--max-steps " in texts[name] for name in ("sft", "rl"))


def test_names_spelled_out_for_speed_are_the_real_ones():
    assert set(get_args(TrainedMessages)) == {choice.value for choice in TrainOnWhat}
    assert set(get_args(LearningRateSchedule)) == set(SCHEDULES)
