"""Where the time of a run went, with `--trace`; what its episodes were, in its logtree."""

import json

import pytest

from shell.stores import MetricsFile
from tests.shell.stores.test_tracing import check_rules, events_of


def test_a_run_of_reinforcement_is_traced_and_told_of(
    command, tmp_path, tiny_model_directory, home
):
    run = tmp_path / "run"
    status, _, err = command(
        "rl", "--model", tiny_model_directory, "--lora-rank", "4", "--groups-per-batch", "2",
        "--group-size", "4", "--max-tokens", "8", "--max-steps", "2", "--save-every", "1",
        "--num-test", "2", "--logtree-every", "2", "--num-groups-to-log", "1", "--run-dir", run,
        "--trace",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert {path.name for path in (run / "logtree").iterdir()} == {
        f"{name}.{ending}"
        for name in ("step_000000", "evaluation_000000", "evaluation_000002")
        for ending in ("html", "json")
    }
    tree = json.loads((run / "logtree" / "step_000000.json").read_text())
    (group,) = tree["root"]["children"]
    assert group["title"] == "Group 0 of 2"
    assert group["attributes"] == {"tags": "arithmetic", "weights of step": 0}
    assert [child.get("title", child["type"]) for child in group["children"]] == [
        "table",
        *(f"Episode {row[0]}" for row in sorted(group["children"][0]["rows"], key=lambda r: -r[1])),
    ]
    observed, sampled = group["children"][1]["children"][0]["messages"]
    assert "What is " in observed["content"][0]["text"]
    assert sampled["content"][0]["colored_by"] == "log-probability"
    assert 0 < len(sampled["content"][0]["values"]) <= 8
    events = events_of(run / "trace.json")
    tracks = check_rules(events)
    within = {"sampling", "environment step"}
    assert [{name for name, depth in track if depth} for track in tracks.values()].count(within) > 1
    names = {name for track in tracks.values() for name, _ in track}
    assert names >= {
        "group", "episode", "environment step", "sampling", "get_batch", "submit", "training",
        "the forward and backward pass", "the optimizer step", "saving the state", "evaluation",
        "waiting_for_rollouts", "account", "write", "step",
    }  # fmt: skip
    # A number that is told and the span that shows it are one and the same.
    began = {(each["name"], each["args"]["step"]): each for each in events
             if each["ph"] == "B" and "step" in each.get("args", {})}  # fmt: skip
    for step in range(2):
        begin = began["step", step]
        end = next(
            each
            for each in events[events.index(begin) :]
            if each["ph"] == "E" and each["tid"] == begin["tid"]
        )
        told = MetricsFile(path=run / "metrics.jsonl").rows()[step]["time/total"]
        assert (end["ts"] - begin["ts"]) / 1e6 == pytest.approx(told, abs=1e-4)
