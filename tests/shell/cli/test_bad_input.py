"""What is wrong with the input is said in one sentence, with status 1 and no traceback."""

import http.server
import json
import socket
import threading

import pytest

from tests.shell.cli.conftest import conversation, write_conversations

GOOD = json.dumps(conversation(0))


def refused(command, *arguments) -> str:
    status, _, err = command(*arguments)
    assert status == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([GOOD, GOOD[:-9]], "line 2"),
        ([GOOD, "", '{"text": "hello"}'], "line 3"),
        ([GOOD, '{"messages": []}'], "line 2"),
        (['{"messages": [{"role": "robot", "content": "beep"}]}'], "'robot'"),
        (['{"messages": [{"role": "user", "content": null}]}'], "content"),
        ([], "no conversation"),
        (['{"messages": [{"role": "user", "content": "alone"}]}'], "nothing to learn"),
    ],
)
def test_damaged_data_is_named_with_its_line(
    command, tmp_path, home, tiny_model_directory, lines, wanted
):
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(lines))
    arguments = ("sft", "--model", tiny_model_directory, "--run-dir", tmp_path / "run")
    err = refused(command, *arguments, "--data", data)
    assert wanted in err
    assert "mine.jsonl" in err


def test_optional_keys_may_be_absent_or_null_and_what_is_left_out_is_counted(
    command, tmp_path, sft_arguments
):
    data = write_conversations(tmp_path / "mixed.jsonl", begin=0, end=6)
    null = conversation(0)
    for message in null["messages"]:
        message |= {"trainable": None, "tool_calls": None}
    alone = {"messages": [{"role": "user", "content": "nobody answers"}]}
    long = conversation(0)
    long["messages"][0]["content"] *= 40
    with data.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in (null, alone, long))
    status, out, err = command(
        *sft_arguments, "--data", data, "--max-length", "200", "--max-steps", "1",
        "--run-dir", tmp_path / "run",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "Training data: 9 conversations" in out
    assert "1 left out because they have nothing to learn" in out
    assert "1 left out because the limit cut off all there was to learn" in out
    first, *_ = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert (first["data/conversations"], first["data/examples"]) == (9, 7)
    assert (first["data/nothing_to_train"], first["data/cut_off"]) == (1, 1)


def test_a_missing_file_is_named(command, tmp_path, home):
    err = refused(command, "sft", "--data", tmp_path / "none.jsonl", "--run-dir", tmp_path / "r")
    assert "none.jsonl cannot be read" in err


def test_a_missing_model_is_named(command, tmp_path, home):
    err = refused(command, "sft", "--model", "no-such-model", "--run-dir", tmp_path / "r")
    assert "no-such-model" in err


def test_a_run_folder_of_another_configuration_is_refused_with_the_difference(
    command, tmp_path, sft_arguments
):
    run = ("--run-dir", tmp_path / "run")
    status, _, err = command(*sft_arguments, *run, "--max-steps", "1")
    assert (status, err) == (0, "")
    err = refused(command, *sft_arguments, *run, "--max-steps", "2", "--seed", "9")
    assert "schedule.max_steps: there 1, now 2 (the learning rate" in err
    assert "seed: there 0, now 9" in err
    write_conversations(tmp_path / "train.jsonl", begin=1, end=25)
    err = refused(command, *sft_arguments, *run, "--max-steps", "1")
    assert "data.data_sha256" in err


def test_another_engine_wants_a_key(command, tmp_path, sft_arguments, monkeypatch):
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    arguments = ("--base-url", "http://127.0.0.1:1", "--run-dir", tmp_path / "run")
    assert "TINKER_API_KEY" in refused(command, *sft_arguments, *arguments)


def test_an_engine_that_is_not_there_is_said(command, tmp_path, sft_arguments, monkeypatch):
    monkeypatch.setenv("TINKER_API_KEY", "tml-x")
    arguments = ("--base-url", "http://127.0.0.1:1", "--run-dir", tmp_path / "run")
    assert "no engine answers" in refused(command, *sft_arguments, *arguments)


def test_a_web_server_that_is_no_engine_is_said(command, home, tiny_model_directory, monkeypatch):
    monkeypatch.setenv("TINKER_API_KEY", "tml-x")

    class Website(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Website) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        err = refused(command, "sample", "Hi", "--model", tiny_model_directory, "--base-url", url)
    assert "no Tinker engine" in err


def test_a_key_that_cannot_be_sent_is_said(command, home, tiny_model_directory, monkeypatch):
    monkeypatch.setenv("TINKER_API_KEY", "tml-ä")
    arguments = ("--model", tiny_model_directory, "--base-url", "http://127.0.0.1:1")
    assert "printable ASCII" in refused(command, "sample", "Hi", *arguments)


def test_a_run_folder_is_free_again_after_a_mistake(command, tmp_path, sft_arguments):
    run = ("--run-dir", tmp_path / "run", "--max-steps", "1")
    assert "seed" in refused(command, *sft_arguments, *run, "--seed", "-1")
    assert "warmup_steps" in refused(command, *sft_arguments, *run, "--warmup-steps", "5")
    status, _, err = command(*sft_arguments, *run)
    assert (status, err) == (0, "")


def test_a_home_that_cannot_be_made_is_named(command, tmp_path, monkeypatch, tiny_model_directory):
    (tmp_path / "file").touch()
    monkeypatch.setenv("COOKBOOK_FX_HOME", str(tmp_path / "file"))
    err = refused(command, "sample", "Hi", "--model", tiny_model_directory)
    assert "COOKBOOK_FX_HOME" in err


def test_a_path_that_is_no_checkpoints_is_said(command, home, tiny_model_directory):
    model = ("--model", tiny_model_directory)
    assert "tinker://" in refused(command, "sample", "Hi", *model, "--checkpoint", "nonsense")


def test_a_question_that_is_no_text_is_said(command, home, tiny_model_directory):
    assert "Unicode" in refused(command, "sample", "\udcff", "--model", tiny_model_directory)


def test_a_question_too_long_to_ask_is_refused_before_the_training(
    command, tmp_path, sft_arguments
):
    run = tmp_path / "run"
    err = refused(command, *sft_arguments, "--question", "why? " * 600, "--run-dir", run)
    assert "--question is" in err
    assert "the model can read 512" in err
    assert not (run / "metrics.jsonl").exists()


def test_held_out_conversations_come_from_one_place(command, tmp_path, sft_arguments):
    err = refused(command, *sft_arguments, "--test-size", "3", "--run-dir", tmp_path / "run")
    assert "--test-size" in err


def test_a_port_in_use_is_said(command, home, tiny_model_directory):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        err = refused(command, "serve", "--model", tiny_model_directory, "--port", port)
    assert f"port {port}" in err


def test_a_port_that_is_none_is_said(command, home, tiny_model_directory):
    err = refused(command, "serve", "--model", tiny_model_directory, "--port", "99999")
    assert "port 99999" in err


def test_a_checkpoint_that_is_not_there_is_said(command, home):
    path = "tinker://nobody:train:0/sampler_weights/final"
    assert path in refused(command, "sample", "Hello?", "--checkpoint", path)


def test_where_a_failure_came_from_is_shown_on_demand(command, tmp_path, home, monkeypatch):
    monkeypatch.setenv("COOKBOOK_FX_DEBUG", "1")
    with pytest.raises(ValueError, match="cannot be read"):
        command("sft", "--data", tmp_path / "none.jsonl", "--run-dir", tmp_path / "r")
