"""A Hugging Face hub of one repository, on this machine."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest

HUB_ID = "someone/tiny"


class Request(NamedTuple):
    """What was asked for, and how much of an answer was taken."""

    path: str
    sent_bytes: int


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download of one repository takes."""

    commit = "0123456789abcdef0123456789abcdef01234567"
    directory: Path
    ranges: bool
    refuse_with: int | None
    received: ClassVar[list[Request]]

    def do_GET(self):
        path = self.path.split("?")[0]
        names = sorted(file.name for file in self.directory.iterdir())
        if path.startswith(f"/{HUB_ID}/resolve/"):
            self._file(self.directory / path.rsplit("/", 1)[1])
        elif path.startswith(f"/api/models/{HUB_ID}/tree/"):
            self._json([self._entry(self.directory / name) for name in names])
        elif path.startswith(f"/api/models/{HUB_ID}"):
            files = [{"rfilename": name} for name in names]
            self._json({"id": HUB_ID, "sha": self.commit, "siblings": files})
        else:
            self._refuse(404, "RepoNotFound")

    do_HEAD = do_GET

    def _refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _entry(self, file):
        content = file.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"type": "file", "path": file.name, "size": len(content), "oid": blob}

    def _json(self, value):
        self._answer(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, file):
        if self.refuse_with is not None:
            self._refuse(self.refuse_with, "GatedRepo" if self.refuse_with == 403 else "")
            return
        if not file.exists():
            self._refuse(404, "EntryNotFound")
            return
        content = file.read_bytes()
        tag = hashlib.sha1(content).hexdigest()
        self._answer(content, {"ETag": f'"{tag}"', "X-Repo-Commit": self.commit})

    def _answer(self, content, headers):
        wanted = re.fullmatch(r"bytes=0-(\d+)", self.headers.get("Range", ""))
        partial = self.ranges and wanted is not None
        if partial:
            whole, content = len(content), content[: int(wanted[1]) + 1]
            headers = headers | {"Content-Range": f"bytes 0-{len(content) - 1}/{whole}"}
        self.send_response(206 if partial else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        sent = 0
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):
                for start in range(0, len(content), 2**16):
                    sent += self.wfile.write(content[start : start + 2**16])
        self.received.append(Request(path=self.path, sent_bytes=sent))

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve_hub(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    ranges: bool = False,
    refuse_with: int | None = None,
):
    """Serves `directory` as `HUB_ID` and has the hub's client ask here.

    Args:
        directory: the repository's files.
        monkeypatch: of the test.
        ranges: whether a part of a file can be asked for; if not, the whole one comes.
        refuse_with: the status with which files, but not their names, are refused; None is not.

    Yields:
        What was received, in order, as it comes.
    """
    received: list[Request] = []
    members = {"directory": directory, "ranges": ranges, "received": received}
    members["refuse_with"] = refuse_with
    handler = type("OneRepository", (Hub,), members)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield received
        server.shutdown()
        thread.join()


def reach_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing cached, and no hub in reach unless a test serves one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
