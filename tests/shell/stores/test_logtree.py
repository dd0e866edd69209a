"""What tasks log at once lands where each was started, and is written whatever happens."""

import asyncio
import json
from pathlib import Path

import pytest
from markupsafe import Markup

from cookbook_fx.chat import Message
from cookbook_fx.errors import DataError
from shell.stores import logtree


def outline(node: dict) -> list:
    """Titles and texts, nested."""
    if node["type"] != "scope":
        return node.get("text", node["type"])
    return [node["title"], *(outline(child) for child in node["children"])]


def written(path: Path) -> list:
    assert path.read_text().startswith("<!DOCTYPE html>")
    return outline(json.loads(path.with_suffix(".json").read_text())["root"])


def test_tasks_and_threads_write_where_they_were_started(tmp_path: Path) -> None:
    async def episode(member: int, others: asyncio.Barrier) -> None:
        with logtree.scope_header(f"episode {member}", member=member):
            for turn in range(2):
                await others.wait()
                logtree.log_text(f"{member}.{turn}")
            await asyncio.to_thread(logtree.log_text, f"thread of {member}")

    async def run() -> None:
        others = asyncio.Barrier(3)
        with logtree.scope_header("group"):
            async with asyncio.TaskGroup() as tasks:
                for member in range(3):
                    tasks.create_task(episode(member, others))
        logtree.header("after")

    with logtree.init_trace("run", tmp_path / "run.html"):
        asyncio.run(run())
    _, group, after = written(tmp_path / "run.html")
    assert after == "after"
    assert sorted(group[1:]) == [
        [f"episode {member}", f"{member}.0", f"{member}.1", f"thread of {member}"]
        for member in range(3)
    ]


def test_an_error_is_written_with_what_was_before_it(tmp_path: Path) -> None:
    def fail() -> None:
        with logtree.init_trace("run", tmp_path / "run.html"), logtree.scope_header("inner"):
            logtree.log_text("before")
            raise ValueError("<script>alert(1)</script>")

    with pytest.raises(ValueError, match="alert"):
        fail()
    title, inner, error = written(tmp_path / "run.html")
    assert (title, inner, error[0]) == ("run", ["inner", "before"], "Ended by ValueError")
    assert "Traceback" in error[1]
    assert "<script>alert" not in (tmp_path / "run.html").read_text()


def test_without_a_tree_nothing_happens() -> None:
    @logtree.scope_header_decorator("named")
    def double(number: int) -> int:
        logtree.log_text("doubling")
        return 2 * number

    with logtree.scope_header("a"), logtree.scope_details("b"), logtree.scope_disable():
        logtree.table([{"a": 1}])
        logtree.log_conversation([Message(role="user", content="Hi")])
        assert double(2) == 4
    assert not logtree.is_active()


def test_everything_that_can_be_logged(tmp_path: Path) -> None:
    @logtree.scope_header_decorator()
    async def awaited() -> str:
        logtree.log_text("inside")
        return "done"

    with logtree.init_trace("all", tmp_path / "all.html") as tree:
        assert asyncio.run(awaited()) == "done"
        logtree.log_html(Markup("<b>bold</b>"))
        logtree.log_code("x = 1", language="python")
        logtree.details("long", summary="short")
        logtree.log_conversation([Message(role="user", content="Hi")])
        logtree.table([{"a": 1, "b": 2}, {"b": 3}], caption="by name")
        logtree.table([[1, 2]], columns=["a", "b"])
        logtree.table_from_dict({"a": 1})
        with logtree.scope_details("folded"):
            logtree.log_text("in it")
        with logtree.scope_disable():
            logtree.log_text("unheard")
        assert len(tree.scope.children) == 9
        with pytest.raises(DataError, match="Markup"):
            logtree.log_html("<b>")  # type: ignore[arg-type]
        with pytest.raises(DataError, match="columns"):
            logtree.table([[1, 2]], columns=["a"])
    told = written(tmp_path / "all.html")
    assert told[:4] == ["all", ["awaited", "inside"], "html", "x = 1"]
    assert told[-1] == ["folded", "in it"]


def test_scopes_without_end_are_written_all_the_same(tmp_path: Path) -> None:
    def deeper(depth: int) -> None:
        with logtree.scope_header(f"at {depth}"):
            if depth < 150:
                deeper(depth + 1)
            else:
                logtree.log_text("the bottom")

    with logtree.init_trace("deep", tmp_path / "deep.html"):
        deeper(0)
    text = (tmp_path / "deep.html").read_text()
    assert "at 150" in text
    assert "the bottom" in text
