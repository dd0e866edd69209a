"""Run folders at URLs, loggers and runs that are there already, from the command line."""

import json
import re
import time

from tests.shell.cli.conftest import start
from tests.shell.cli.test_commands import rows, wait_for_rows


def test_a_run_at_a_url_is_told_to_loggers_deleted_and_never_asked_about_without_a_terminal(
    command, tmp_path, sft_arguments
):
    store = tmp_path / "store" / "run"
    arguments = [*sft_arguments, "--max-steps", "2", "--run-dir", f"file://{store}"]
    status, out, err = command(*arguments, "--loggers", "console")
    assert (status, err) == (0, "")
    assert out.count("Step ") == 3
    assert [row["step"] for row in rows(store)] == [0, 1, 2]
    assert (store / "report.html").exists()
    assert any((store / "checkpoints").iterdir())
    assert not (tmp_path / "file:").exists()

    for choice in ("ask", "raise"):
        status, _, err = command(*arguments, "--existing", choice)
        assert status == 1
        assert "holds a run already" in err
    status, out, _ = command(*arguments, "--existing", "resume")
    assert (status, "This run is finished" in out) == (0, True)
    status, out, err = command(*arguments, "--seed", "7", "--existing", "delete")
    assert (status, err) == (0, "")
    assert json.loads((store / "config.json").read_text())["seed"] == 7
    assert [row["step"] for row in rows(store)] == [0, 1, 2]


def test_a_run_killed_and_continued_has_each_step_once_in_its_file_and_at_its_url(
    command, tmp_path, home, sft_arguments
):
    store = tmp_path / "store" / "run"
    arguments = [*sft_arguments, "--run-dir", f"file://{store}"]
    with start(arguments, cwd=tmp_path) as process:
        copies = home / "runs"
        while process.poll() is None and not list(copies.glob("run-*/run")):
            time.sleep(0.01)
        (copy,) = copies.glob("run-*/run")
        wait_for_rows(process, copy, 5)
        process.kill()
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert re.search(r"Continuing after step \d+ of 12", out)
    assert [row["step"] for row in rows(store)] == list(range(13))
    assert (store / "metrics.jsonl").read_text() == (copy / "metrics.jsonl").read_text()
