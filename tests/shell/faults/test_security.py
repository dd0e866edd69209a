"""Nobody gets in, nothing private gets out, and no file can make the program run code."""

import ast
import os
import stat
from pathlib import Path

import pytest

from shell.engine.serve import EngineConfig
from tests.shell.faults.processes import API_KEY, EngineProcess, run_process

REPOSITORY = Path(__file__).parents[3]
SOURCES = sorted(
    (*(REPOSITORY / "cookbook_fx").rglob("*.py"), *(REPOSITORY / "shell").rglob("*.py"))
)
# Read or run whatever a file says.
CODE_FROM_DATA = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
# Talk between a process and its own children, over a pipe that nobody else has an end of.
BETWEEN_PROCESSES = {"worker.py", "workers.py"}
TRUSTING = {"trust_remote_code", "allow_pickle"}


def calls(tree: ast.AST):
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_nothing_unpickles_evaluates_or_trusts_remote_code(source):
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and source.name not in BETWEEN_PROCESSES:
            assert not {name.name.partition(".")[0] for name in node.names} & CODE_FROM_DATA
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in CODE_FROM_DATA
    for call in calls(tree):
        name = getattr(call.func, "id", None)
        assert name not in {"eval", "exec", "compile", "__import__"}, ast.unparse(call)
        attribute = ast.unparse(call.func)
        assert attribute not in {"np.load", "numpy.load", "torch.load", "yaml.load", "os.system"}
        for keyword in call.keywords:
            is_off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            assert keyword.arg not in TRUSTING or is_off, ast.unparse(call)
            assert keyword.arg != "shell" or is_off, ast.unparse(call)


def test_templates_that_come_with_a_model_run_in_a_sandbox():
    for source in (REPOSITORY / "cookbook_fx" / "renderers").rglob("*.py"):
        for call in calls(ast.parse(source.read_text())):
            name = ast.unparse(call.func).rpartition(".")[2]
            assert not name.endswith("Environment") or "Sandboxed" in name, source


def test_keys_are_compared_in_constant_time():
    assert "hmac.compare_digest" in (REPOSITORY / "shell/engine/app.py").read_text()


def test_the_engine_listens_on_loopback_only_unless_told_and_given_a_key():
    assert EngineConfig().host == "127.0.0.1"


@pytest.mark.slow
def test_no_key_or_prompt_is_told_and_files_are_the_users_own(
    commands, home, tiny_model_directory, tmp_path, monkeypatch
):
    """A run and an engine that log all they can, under a umask that lets others read."""
    monkeypatch.setenv("COOKBOOK_FX_DEBUG", "1")
    monkeypatch.setenv("TINKER_LOG", "debug")
    previous = os.umask(0o022)
    engine = EngineProcess(model=tiny_model_directory, folder=tmp_path)
    run = tmp_path / "run"
    try:
        engine.start()
        with run_process(commands["sft"], run=run, url=engine.url) as process:
            told = process.communicate(timeout=300)[0]
        assert process.returncode == 0, told
        engine.process.send_signal(15)
        told_by_engine = engine.process.communicate(timeout=30)[0]
    finally:
        os.umask(previous)
        if engine.is_alive():
            engine.kill()
    assert API_KEY not in told
    # The one place where it has to be told: what to set in the client's environment.
    assert told_by_engine.count(API_KEY) <= 1
    assert "where is the cat" not in told + told_by_engine
    for folder in (run, home / "checkpoints"):
        for entry in (folder, *folder.rglob("*")):
            mode = stat.S_IMODE(entry.stat().st_mode)
            assert not mode & 0o077, f"{entry} can be read by others: {mode:o}"
