"""The report of a run: what it left, read and written into one page."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.resources import Resources

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, CookbookError, DataError
from cookbook_fx.reports.figures import StepRewards
from cookbook_fx.reports.panels import curves, progress
from cookbook_fx.reports.run_page import RunStory, report_page
from cookbook_fx.reports.samples import sample_column, text_columns
from cookbook_fx.rl.records import RecordedGroup
from cookbook_fx.rl.replay import EpisodeIndex, episode_data, replay_batch
from cookbook_fx.tokens import Tokenizer
from shell.hub import load_tokenizer, resolve_model
from shell.stores import BatchesFile, CodeFile, MetricsFile, RolloutsFile, SamplesFile
from shell.stores.code_state import CODE
from shell.stores.files import write_atomically
from shell.stores.run_folder import BATCHES, ROLLOUTS, is_running
from shell.stores.samples import SAMPLES

REPORT = "report.html"

# Steps whose rewards are drawn, and whose answers are shown, of all runs of a page together.
_HISTOGRAMS = 60
_COLUMNS = 8

Say = Callable[[str], None]


def write_report(run_dirs: Sequence[Path], path: Path, *, say: Say) -> None:
    """Writes the page of runs, finished or under way.

    Args:
        run_dirs: their folders.
        path: of the page.
        say: told of what takes time.

    Raises:
        ConfigurationError: a folder is none of a run.
        DataError: what a run left is damaged.
        StorageError: the page cannot be written.
    """
    names = _names(run_dirs)
    columns = max(2, _COLUMNS // len(run_dirs))
    stories = [
        read_story(run_dir, name=name, num_columns=columns, say=say)
        for run_dir, name in zip(run_dirs, names, strict=True)
    ]
    script = "".join(Resources(mode="inline", components=["bokeh"]).js_raw)
    page = report_page(stories, bokeh=script)
    # What is no Unicode text, as halves of characters, has no bytes.
    write_atomically(path, page.encode(errors="replace").decode(), what="the report")


def read_story(run_dir: Path, *, name: str, num_columns: int, say: Say) -> RunStory:
    """What a run left in its folder.

    Args:
        run_dir: the folder.
        name: what the page calls the run.
        num_columns: steps whose answers are shown.
        say: told of what takes time.

    Raises:
        ConfigurationError: the folder is none of a run.
        DataError: what the run left is damaged.
    """
    config = read_config(run_dir)
    rows = MetricsFile(path=run_dir / "metrics.jsonl").rows()
    code = CodeFile(path=run_dir / CODE)
    starts = code.starts()
    rollouts = RolloutsFile(path=run_dir / ROLLOUTS)
    done = {row["step"] for row in rows}
    steps = [step for step in rollouts.steps() if step in done]
    looked_at = _evenly(steps, num_columns)
    remarks: list[str] = []
    texts = SamplesFile(path=run_dir / SAMPLES).texts()
    tokenizer = _tokenizer(config, remarks, say=say) if looked_at or texts else None
    columns = [] if tokenizer is None else text_columns(texts, tokenizer)
    rewards: list[StepRewards] = []
    drawn = sorted({*_evenly(steps, _HISTOGRAMS), *looked_at})
    for step, groups in _by_step(rollouts, drawn):
        totals = [reward for one in groups for reward in one.group.get_total_rewards()]
        finite = np.asarray(totals, np.float64)[np.isfinite(np.asarray(totals, np.float64))]
        if finite.size:
            rewards.append(StepRewards(step=step, rewards=finite))
        if step in looked_at:
            data = _learnt(run_dir, step, groups, remarks)
            column = sample_column(groups, data, tokenizer)
            columns += [] if column is None else [column]
    return RunStory(
        name=name,
        rows=rows,
        config=config,
        state=_state(run_dir, rows),
        starts=starts,
        diff=code.diff(starts[-1]).decode(errors="replace") if starts else "",
        rewards=rewards,
        samples=columns,
        remarks=tuple(dict.fromkeys(remarks)),
    )


def read_config(run_dir: Path) -> dict[str, Any]:
    """The configuration of a run.

    Raises:
        ConfigurationError: the folder is none of a run.
        DataError: it is damaged.
    """
    file = run_dir / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{run_dir} is no run folder: {file.name} cannot be read ({error.strerror}); give the "
            "--run-dir of a run"
        ) from error
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); restore it") from error
    if not isinstance(config, dict):
        raise DataError(f"{file} is damaged: it holds no JSON object; restore it")
    return config


def _names(run_dirs: Sequence[Path]) -> list[str]:
    """The folders' names; where two are alike, their whole paths."""
    absolute = [run_dir.absolute() for run_dir in run_dirs]
    if len(set(absolute)) < len(absolute):
        raise ConfigurationError(
            "a run can be compared with others, not with itself; give each once"
        )
    names = [path.name for path in absolute]
    return names if len(set(names)) == len(names) else [str(path) for path in absolute]


def _evenly(steps: Sequence[int], count: int) -> list[int]:
    """Some of the steps, the first and the last among them."""
    if not steps:
        return []
    places = np.unique(np.linspace(0, len(steps) - 1, min(count, len(steps))).astype(int))
    return [steps[place] for place in places]


def _by_step(
    rollouts: RolloutsFile, steps: Sequence[int]
) -> Iterator[tuple[int, list[RecordedGroup]]]:
    """The groups of each step, in order."""
    found: dict[int, list[RecordedGroup]] = {step: [] for step in steps}
    for recorded in rollouts.groups(steps=found):
        found[recorded.step].append(recorded)
    yield from found.items()


def _learnt(
    run_dir: Path, step: int, groups: Sequence[RecordedGroup], remarks: list[str]
) -> dict[EpisodeIndex, list[Datum]]:
    """What was trained on of each episode; nothing, and said so, where it cannot be made again."""
    by_index = {group.index: group for group in groups}
    data: dict[EpisodeIndex, list[Datum]] = {}
    try:
        for record in BatchesFile(path=run_dir / BATCHES).batches(step=step):
            for place, datums in episode_data(replay_batch(record, by_index)).items():
                data.setdefault(place, datums)
    except DataError as error:
        remarks.append(f"Advantages of step {step} are not shown: {error}.")
    return data


def _tokenizer(config: dict[str, Any], remarks: list[str], *, say: Say) -> Tokenizer | None:
    try:
        model = config["model"]["model"]
        return load_tokenizer(resolve_model(model, say=say, with_weights=False).directory)
    except (KeyError, TypeError):
        why = "config.json names no model"
    except CookbookError as error:
        why = str(error)
    remarks.append(f"Samples are shown without their tokens, as there is no tokenizer: {why}.")
    return None


def _state(run_dir: Path, rows: Sequence[Any]) -> str:
    done = progress(curves(rows))
    if done.total is not None and done.steps >= done.total:
        return "finished"
    return "running" if is_running(run_dir) else "not finished"
