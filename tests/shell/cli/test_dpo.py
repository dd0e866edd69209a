"""`cookbook-fx dpo` end to end on the tiny model: trained, killed, continued."""

import json

import pytest

from shell.recipes.preferences import preference_sources, read_preferences
from shell.training import PreferenceData
from tests.shell.cli.conftest import NAMES, start
from tests.shell.cli.test_commands import assert_same_run, rows, wait_for_rows

TOTAL = 8


@pytest.fixture
def dpo_arguments(tmp_path, tiny_model_directory, home) -> list[str]:
    """`dpo` for 8 short steps, saved every 2."""
    path = tmp_path / "preferences.jsonl"
    lines = [
        {
            "prompt": f"where is {NAMES[i % 7]} {i}",
            "chosen": f"on {NAMES[(3 * i + 1) % 7]}",
            "rejected": "dog " * (i % 3 + 1),
        }
        for i in range(20)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        "dpo", "--model", str(tiny_model_directory), "--data", str(path), "--test-size", "4",
        "--batch-size", "4", "--num-epochs", "2", "--lora-rank", "4", "--learning-rate", "0.01",
        "--save-every", "2", "--eval-every", "4",
    ]  # fmt: skip


def test_dpo_trains_tells_and_a_killed_run_ends_in_the_same_weights(
    command, tmp_path, home, dpo_arguments, tiny_model_directory
):
    whole = tmp_path / "whole"
    status, out, err = command(*dpo_arguments, "--run-dir", whole)
    assert (status, err) == (0, "")
    assert "16 comparisons; 16 pairs" in out
    assert f"Held-out accuracy: 1.000 after {TOTAL} steps" in out
    assert [row["step"] for row in rows(whole)] == list(range(TOTAL + 1))
    kept = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert [(text["title"], text["heading"]) for text in kept] == [
        (f"Trained on: pair {number}", name)
        for number in (1, 2, 3)
        for name in ("chosen", "rejected")
    ]
    assert all(max(text["weights"]) > 0 for text in kept[::2])
    assert all(min(text["weights"]) < 0 for text in kept[1::2])
    config = json.loads((whole / "config.json").read_text())
    assert config["preference"]["reference_model_name"] == str(tiny_model_directory)

    killed = tmp_path / "killed"
    with start([*dpo_arguments, "--run-dir", str(killed)], cwd=tmp_path) as process:
        wait_for_rows(process, killed, 4)
        process.kill()
    status, out, err = command(*dpo_arguments, "--run-dir", killed)
    assert (status, err) == (0, "")
    assert_same_run(killed, whole, home, tiny_model_directory)

    status, out, _ = command(*dpo_arguments, "--run-dir", whole)
    assert "This run is finished" in out
    status, _, err = command(*dpo_arguments, "--run-dir", whole, "--beta", "0.5")
    assert status == 1
    assert "preference.beta" in err


def test_the_starter_set_is_there_and_none_of_it_is_left_out():
    preferences = read_preferences(PreferenceData(), seed=0)
    assert (len(preferences.train), len(preferences.held_out)) == (52, 12)
    prompts = [
        labeled.comparison.prompt_conversation
        for labeled in (*preferences.train, *preferences.held_out)
    ]
    assert len(set(prompts)) == 64
    assert preference_sources(PreferenceData(test_size=3)).held_out is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--test-size", "4", "--eval-data", "x.jsonl"], "--eval-data or --test-size"),
        (["--test-size", "-1"], "test_size"),
        (["--test-size", "64"], "leaves nothing to train on"),
        (["--data", "missing.jsonl"], "cannot be read"),
    ],
)
def test_bad_input_is_told_in_a_line(command, home, tmp_path, options, said):
    status, _, err = command("dpo", *options, "--run-dir", tmp_path / "run")
    assert status == 1
    assert said in err
    assert "Traceback" not in err
