"""A step of a real run, made again: identical, or where it is not; and what else it could be."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cookbook_fx.rl import Objective
from shell.cli.main import main
from shell.hub import load_tokenizer
from shell.rollouts import MinViableGroup, RolloutOptions
from shell.training import KLReference, ModelChoice, RLCadence, SamplingChoice, Schedule
from shell.training.rl import RLData
from shell.training.rl_config import RLConfig
from tests.rl_runs import Problems, RLRunner, constant, low_tokens


async def failing(env) -> float:
    raise OSError("the grader is gone")


def behaviour(number: int):
    return {0: low_tokens, 1: constant, 2: low_tokens, 3: failing}[number % 4]


@pytest.fixture(scope="module")
def run_dir(tiny_engine, tiny_model_directory, tmp_path_factory) -> Path:
    """2 steps of 4 groups: 2 substeps of 2 minibatches, a KL penalty, a group that fails."""
    folder = tmp_path_factory.mktemp("replay") / "run"
    config = RLConfig(
        model=ModelChoice(model=str(tiny_model_directory), lora_rank=4),
        schedule=Schedule(learning_rate=1e-2, lr_schedule="constant", max_steps=2),
        cadence=RLCadence(eval_every=None, save_every=None),
        sampling=SamplingChoice(max_tokens=6),
        objective=Objective(kl_penalty_coef=0.1, kl_discount_factor=0.5),
        kl_references=(KLReference(),),
        num_substeps=2,
        num_minibatches=2,
        rollout=RolloutOptions(strategy=MinViableGroup()),
    )
    data = RLData(
        train=Problems(count=8, groups=4, behaviour_of=behaviour),
        tokenizer=load_tokenizer(tiny_model_directory),
    )
    result = RLRunner(endpoint=tiny_engine, config=config, data=data)(folder)
    assert result.finished
    (folder / "config.json").write_text(json.dumps({"model": {"model": str(tiny_model_directory)}}))
    return folder


@pytest.fixture
def copied(run_dir, tmp_path) -> Path:
    """The run, to be damaged."""
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


@pytest.fixture
def replay(capsys):
    """Runs the command: its status and all it says."""

    def run(run_dir: Path, *arguments: str, step: int = 1) -> tuple[int, str]:
        status = main(["replay", str(run_dir), "--step", str(step), *arguments])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def change_rollouts(run_dir: Path, change: Callable[[dict], None], *, group: int = 0) -> None:
    """Changes the first episode of a group of step 1."""
    file = run_dir / "rollouts.jsonl"
    values = [json.loads(line) for line in file.read_text().splitlines()]
    (first, *_) = [value for value in values if (value["step"], value["group"]) == (1, group)]
    change(first)
    file.write_text("".join(json.dumps(value) + "\n" for value in values))


def change_batches(run_dir: Path, **fields) -> None:
    file = run_dir / "batches.jsonl"
    values = [json.loads(line) | fields for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(value) + "\n" for value in values))


def test_every_step_of_a_run_is_made_again_bit_for_bit(run_dir, replay):
    for step in (0, 1):
        status, said = replay(run_dir, step=step)
        assert status == 0, said
        verdicts = re.findall(r"^batch \d of (\d), .*: (.*) what was sent", said, re.MULTILINE)
        assert len(verdicts) == int(verdicts[0][0])
        assert {verdict for _, verdict in verdicts} == {"identical to"}
        assert f"step {step}: 4 groups, 12 episodes and " in said
        assert re.search(r"^tokens trained on +\d+$", said, re.MULTILINE)


def test_another_choice_stands_beside_the_runs_own(run_dir, replay):
    status, said = replay(
        run_dir, "--advantages", "leave_one_out", "--loss", "ppo", "--loss-config",
        "clip_low_threshold=0.99", "clip_high_threshold=1.01", "--kl-penalty-coef", "0",
    )  # fmt: skip
    assert status == 0
    assert "as sent: group_centered, importance_sampling, KL penalty 0.1 a nat" in said
    assert (
        "instead: leave_one_out, ppo (clip_low_threshold=0.99, clip_high_threshold=1.01)\n" in said
    )
    sizes = re.search(r"^mean \|gradient\| by log-probability +(\S+) +(\S+)$", said, re.MULTILINE)
    assert float(sizes[1]) > 0
    assert float(sizes[2]) > 0
    assert re.search(r"^advantages of another sign: [1-9]", said, re.MULTILINE)
    # Where all earned the same, nothing is left to learn without the penalty.
    constant_group = said[re.search(r"rewards +1 +1 +1 +1\n", said).end() :].split("\n")
    assert constant_group[1].split() == ["instead"] + ["+0.000"] * 4


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda episode: episode["transitions"][0].update(reward=0.25), "other advantages than"),
        (lambda episode: episode["transitions"][0]["ac"].reverse(), "other tokens than"),
        (
            lambda episode: episode["transitions"][0]["logprobs"].__setitem__(0, -0.125),
            "other logprobs than",
        ),
    ],
    ids=["reward", "tokens", "log-probability"],
)
def test_a_batch_that_was_not_sent_is_told_with_its_first_difference(
    copied, replay, change, difference
):
    change_rollouts(copied, change)
    status, said = replay(copied)
    assert status == 1
    # In whichever batch the group came to be, as its turn was to arrive.
    (found,) = re.findall(r"^batch .*: groups 0, 4 datums, .*", said, re.MULTILINE)
    assert found.endswith(f"NOT what was sent: datum 0 has {difference} was sent")
    assert said.count("identical to what was sent") == 2


def test_a_run_without_the_learners_answers_says_what_cannot_be_told(copied, replay):
    change_batches(copied, training_logprobs=None)
    status, said = replay(copied)
    assert status == 0
    assert "the loss cannot be told" in said
    assert "tokens trained on" not in said
    assert re.search(r"group 0 +rewards", said)


def test_a_step_that_taught_nothing_has_no_batch(copied, replay):
    (copied / "batches.jsonl").unlink()
    status, said = replay(copied)
    assert status == 0
    assert "Nothing was learnt in this step" in said


def test_rollouts_that_are_missing_are_named(copied, replay):
    file = copied / "rollouts.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith('{"step":1,"group":0')))
    status, said = replay(copied)
    assert status == 1
    assert "was made of the groups [0], and no rollouts of [0] are recorded" in said


def test_what_is_not_there_is_refused(run_dir, tmp_path, replay):
    assert replay(tmp_path) == (
        1,
        f"error: {tmp_path} is no folder of a reinforcement-learning run: it has no "
        "rollouts.jsonl; give the --run-dir of a run of `cookbook-fx rl`\n",
    )
    status, said = replay(run_dir, step=9)
    assert status == 1
    assert said.endswith("has no rollouts of step 9; it has those of steps 0 to 1\n")


@pytest.mark.parametrize("setting", ["clip_low_threshold", "clip_low_threshold=low", "=", "a=1"])
def test_settings_that_are_none_are_refused(run_dir, replay, setting):
    status, said = replay(run_dir, "--loss", "ppo", "--loss-config", setting)
    assert status == 1
    assert "takes name=value" in said or "has no setting" in said


def test_episodes_are_shown_in_color_and_marked(run_dir, replay, monkeypatch):
    status, said = replay(run_dir, "--show", "2")
    assert status == 0
    assert len(re.findall(r"^group 0, episode [01]: reward \S+, advantage", said, re.M)) == 2
    assert len(re.findall(r"^<\|im_start\|>.*(\{\+|\[-)", said, re.MULTILINE)) == 2
    assert re.search(r"^group \d: \d failed with OSError: the grader is gone$", said, re.M)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    _, colored = replay(run_dir, "--show", "2")
    assert "\x1b[33m<|im_start|>" in colored
    assert "\x1b[32m" in colored or "\x1b[31m" in colored


def test_without_a_tokenizer_texts_are_those_recorded_and_else_numbers(copied, replay):
    (copied / "config.json").unlink()
    change_rollouts(copied, lambda value: value["transitions"][0].update(ac_text="in words\x1b"))
    _, said = replay(copied, "--show", "2")
    assert "names no model; texts are shown as they were recorded" in said
    assert re.search(r"(\{\+|\[-)in words␛", said)

    def forget(value: dict) -> None:
        for name in ("ob_text", "ac_text"):
            del value["transitions"][0][name]

    change_rollouts(copied, forget)
    _, said = replay(copied, "--show", "1")
    assert re.search(r"^1 6\d 61 (\{\+|\[-)[\d ]+$", said, re.MULTILINE)


def test_an_episode_that_nothing_is_learnt_from_is_shown_as_read(copied, replay):
    (copied / "batches.jsonl").unlink()
    _, said = replay(copied, "--show", "1")
    assert "group 0, episode 0: reward" in said
    assert ", not trained on, " in said
    assert re.search(r"^<\|im_start\|>[^{]*$", said, re.MULTILINE)
