"""Data that nobody of this project wrote, for slow tests and benchmarks."""

import json
import tarfile

from filelock import FileLock

from cookbook_fx.chat import Conversation, Message
from shell.hub import home
from shell.hub.models import say_on_standard_error
from shell.hub.packages import PackageFile, fetch_package

# Apache-2.0. Its demonstration rows come from other public sets; they are not kept here.
_LLAMAFACTORY = PackageFile(
    package="llamafactory",
    version="0.9.5",
    filename="llamafactory-0.9.5.tar.gz",
    sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
)


def llamafactory_conversations() -> tuple[Conversation, ...]:
    """The 999 English instruction rows of the package's source archive, a turn each way."""
    (home() / "downloads").mkdir(parents=True, exist_ok=True)
    with FileLock(home() / "downloads" / ".llamafactory.lock"):
        archive = fetch_package(_LLAMAFACTORY, say=say_on_standard_error)
    with tarfile.open(archive) as tar:
        rows = json.load(tar.extractfile("llamafactory-0.9.5/data/alpaca_en_demo.json"))
    return tuple(_conversation(row) for row in rows)


def _conversation(row: dict) -> Conversation:
    asked = "\n".join(part for part in (row["instruction"], row["input"]) if part)
    return (
        Message(role="user", content=asked),
        Message(role="assistant", content=row["output"]),
    )
