"""The shapes of a model's tensors, from the beginnings of its files: weights are not fetched.

A safetensors file begins with 8 bytes, the length of a JSON header that names every tensor with
its shape (https://huggingface.co/docs/safetensors).
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session

from cookbook_fx.catalog import ModelShapes, without_suffix
from cookbook_fx.errors import ModelError
from shell.hub.models import (
    Say,
    checked_hub_id,
    here,
    resolve_model,
    say_on_standard_error,
)
from shell.hub.reach import why_unavailable
from shell.hub.weights import shard_names, weight_files

FirstBytes = Callable[[int], bytes]
"""Gives so many bytes from a file's beginning, or the whole file where it is shorter."""

_LENGTH_BYTES = 8
# Most headers are shorter, so that one request is enough.
_FIRST_REQUEST_BYTES = 128 * 1024
# What the safetensors library itself refuses.
_LONGEST_HEADER_BYTES = 100_000_000
_LONGEST_INDEX_BYTES = 100_000_000
_REQUESTS_AT_ONCE = 8
_LIMIT_SECONDS = 20.0
_OK, _PARTIAL, _UNAUTHORISED, _FORBIDDEN, _NOT_FOUND = 200, 206, 401, 403, 404


def read_shapes(name_or_path: str, *, say: Say = say_on_standard_error) -> ModelShapes:
    """The shape of every tensor of a model.

    Of a model on the hub that is not on this machine only the headers of its files are read, not
    more than a few megabytes of the largest.

    Args:
        name_or_path: as for `resolve_model`; a `:suffix` of a name is passed over.
        say: is told in whole sentences of everything that takes time.

    Raises:
        ModelError: there is no such model, the hub cannot be reached, or a file is torn.
    """
    if Path(name_or_path).suffix.lower() == ".gguf":
        directory: Path | None = resolve_model(name_or_path, say=say).directory
    else:
        directory = here(name_or_path) or here(without_suffix(name_or_path))
    if directory is None:
        return _from_hub(checked_hub_id(without_suffix(name_or_path)), say)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(directory):
        shapes |= _read_header(_reading(path), where=str(path))
    return shapes


def _reading(path: Path) -> FirstBytes:
    def first_bytes(count: int) -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(count)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error

    return first_bytes


def _from_hub(hub_id: str, say: Say) -> ModelShapes:
    say(f"Reading the shapes of {hub_id} on the Hugging Face hub.")
    unavailable = why_unavailable(hub_id)
    if unavailable is not None:
        raise ModelError(unavailable)
    source = f"{hub_id}/{constants.SAFETENSORS_INDEX_FILE}"
    index = _first_bytes(hub_id, constants.SAFETENSORS_INDEX_FILE, _LONGEST_INDEX_BYTES)
    if index is None:
        names: tuple[str, ...] = (constants.SAFETENSORS_SINGLE_FILE,)
    else:
        names = shard_names(_json_object(index, where=source), source=source)

    def header(name: str) -> ModelShapes:
        return _read_header(_asking(hub_id, name), where=f"{hub_id}/{name}")

    shapes: dict[str, tuple[int, ...]] = {}
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        for of_file in pool.map(header, names):
            shapes |= of_file
    return shapes


def _asking(hub_id: str, filename: str) -> FirstBytes:
    def first_bytes(count: int) -> bytes:
        content = _first_bytes(hub_id, filename, count)
        if content is None:
            raise ModelError(
                f"the Hugging Face hub has no {filename} of {hub_id}; only weights in safetensors "
                "files are read"
            )
        return content

    return first_bytes


def _first_bytes(hub_id: str, filename: str, count: int) -> bytes | None:
    """The beginning of a file on the hub; None if there is no such file.

    Not more is read than asked for, even from a server that offers the whole file.
    """
    headers = build_hf_headers() | {
        "Accept-Encoding": "identity",
        "Range": f"bytes=0-{count - 1}",
    }
    url = hf_hub_url(hub_id, filename)
    content = bytearray()
    try:
        with get_session().stream("GET", url, headers=headers, timeout=_LIMIT_SECONDS) as response:
            if response.status_code == _NOT_FOUND:
                return None
            # Of a model with terms the hub describes all to everyone, and gives files to few.
            if response.status_code in (_UNAUTHORISED, _FORBIDDEN):
                raise ModelError(
                    f"{hub_id} needs its terms accepted on the hub, and a login (`hf auth login`)."
                )
            if response.status_code not in (_OK, _PARTIAL):
                raise ModelError(
                    f"the Hugging Face hub answered {response.status_code} when asked for "
                    f"{filename} of {hub_id}; try again later"
                )
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) >= count:
                    break
    except httpx2.HTTPError as error:
        raise ModelError(
            f"{filename} of {hub_id} could not be read from the Hugging Face hub "
            f"({type(error).__name__}: {error}); try again"
        ) from error
    return bytes(content[:count])


def _read_header(first_bytes: FirstBytes, *, where: str) -> ModelShapes:
    start = first_bytes(_FIRST_REQUEST_BYTES)
    end = _LENGTH_BYTES + int.from_bytes(start[:_LENGTH_BYTES], "little")
    if len(start) < _LENGTH_BYTES or end > _LONGEST_HEADER_BYTES:
        raise ModelError(f"{where} is torn or not a safetensors file: it has no header")
    content = start if len(start) >= end else first_bytes(end)
    if len(content) < end:
        raise ModelError(f"{where} is torn: it ends within its header; download it again")
    header = _json_object(content[_LENGTH_BYTES:end], where=where)
    return {
        name: _shape(entry, name, where) for name, entry in header.items() if name != "__metadata__"
    }


def _shape(entry: Any, name: str, where: str) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ModelError(f"{where} is damaged: its tensor {name} has the shape {shape!r}")
    return tuple(shape)


def _json_object(content: bytes, *, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content.decode("utf-8"))
    # Torn JSON, torn UTF-8, numbers of thousands of digits, and nesting without end.
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} is torn or damaged: its header is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{where} is damaged: want a JSON object, got {type(value).__name__}")
    return value
