"""A tree is shown as it is, and no text in it can be markup."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from cookbook_fx.chat import ImagePart, Message, TextPart, ThinkingPart, ToolCall
from cookbook_fx.errors import DataError
from cookbook_fx.reports.colorized import format_html_pieces
from cookbook_fx.reports.logtree import (
    Code,
    Colored,
    Conversation,
    Details,
    Header,
    Html,
    Node,
    Scope,
    Table,
    Text,
    Turn,
    conversation,
    logtree_json,
    logtree_page,
)


class Structure(HTMLParser):
    """The tags of a page and what stands in their attributes; and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.text = ""
        self._is_code = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._is_code:
            # Colors depend on what is said; they are all there may be.
            assert tag == "span"
            assert [name for name, _ in attrs] in ([], ["class"])
            return
        self._is_code = tag == "pre"
        self.tags.append((tag, tuple(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self._is_code and tag == "span":
            return
        self._is_code = False
        self.tags.append((f"/{tag}", ()))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data}")


def structure(page: str) -> Structure:
    parser = Structure()
    parser.feed(page)
    parser.close()
    return parser


def every_kind(text: str, *, language: str = "python") -> Scope:
    """A tree in which a text stands wherever a text can."""
    value = Markup(text)
    turn = Turn(role=text, content=(Text(text=text), Details(summary=text, text=text)), note=text)
    children: tuple[Node, ...] = (
        Text(text=text),
        Text(text=value),
        Header(text=text),
        Table(columns=(text, "b"), rows=((text, value), (1, 0.5)), caption=text),
        Code(text=text, language=language),
        Code(text=text, language=text),
        Details(summary=text, text=text),
        Conversation(turns=(turn,)),
        Scope(title=text, attributes={text: text, "b": value}, is_folded=True),
        Colored(
            text=text,
            markup=Markup(format_html_pieces([(text, 1.0)])),
            values=(1.0,),
            colored_by=text,
        ),
    )
    return Scope(
        title=text,
        attributes={text: value},
        children=(*children, Scope(title=text, children=children)),
    )


HARMLESS = structure(logtree_page(every_kind("harmless"), started_at="now")).tags
markup = st.sampled_from(
    [
        "<b>", "</p>", "</title>", "</style>", "</pre>", "<script>alert(1)</script>", "<!--", "-->",
        "]]>", "<?php", "&lt;b&gt;", '"', "' onload='x", "{{ 1 }}", "{% end %}", "\x00", "\x1b[31m",
        "<img src=x onerror=alert(1)>", "\ud800", "javascript:", "&#60;b&#62;", "<svg/onload=x>",
    ]
)  # fmt: skip
texts = st.lists(markup | st.text(max_size=6), min_size=1, max_size=5).map("".join)


@settings(max_examples=60)
@given(
    texts.filter(str.strip),
    st.sampled_from(["python", "html", "json", "php", "bash", "pytb", "js"]),
)
def test_no_text_can_be_markup(text: str, language: str) -> None:
    tree = every_kind(text, language=language)
    assert structure(logtree_page(tree, started_at="now")).tags == HARMLESS
    assert json.loads(logtree_json(tree))["root"]["children"][0]["text"] == text


def test_markup_must_say_that_it_is_to_be_trusted() -> None:
    page = logtree_page(Scope(title="t", children=(Html(markup=Markup("<b>bold</b>")),)))
    assert ("b", ()) in structure(page).tags
    with pytest.raises(DataError, match=r"markupsafe\.Markup"):
        Html(markup="<b>bold</b>")


def test_scopes_are_headed_by_their_depth_and_any_depth_can_be_shown() -> None:
    tree = Scope(title="deepest")
    for depth in range(2000):
        tree = Scope(title=f"at {depth}", children=(tree,))
    tags = [tag for tag, _ in structure(logtree_page(tree)).tags]
    assert [tag for tag in tags if tag in ("h2", "h3", "h4", "h5")] == ["h2", "h3", "h4", "h5"]
    assert tags.count("h6") == 2000 - 4
    assert tags.count("section") == tags.count("/section") == 2000


def test_messages_are_shown_with_reasoning_calls_and_images() -> None:
    shown = conversation(
        [
            Message(role="user", content=(TextPart(text="Look:"), ImagePart(image="data:,"))),
            Message(
                role="assistant",
                content=(ThinkingPart(thinking="Hm."), TextPart(text="A cat.")),
                tool_calls=(ToolCall(name="pet", arguments='{"animal": "cat"}'),),
            ),
            Message(role="tool", content="purr", name="pet"),
        ]
    )
    text = structure(logtree_page(Scope(title="t", children=(shown,)))).text
    for said in ("Look:", "(an image)", "reasoning", "Hm.", "A cat.", "animal", "tool · pet"):
        assert said in text
    (found,) = json.loads(logtree_json(Scope(title="t", children=(shown,))))["root"]["children"]
    assert [message["role"] for message in found["messages"]] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("value", [np.float32("nan"), float("inf"), np.int64(3), {"a": 1}, None])
def test_values_of_any_kind_have_json(value: object) -> None:
    tree = Scope(
        title="t", attributes={"v": value}, children=(Table(columns=("v",), rows=((value,),)),)
    )
    logtree_page(tree)
    json.loads(logtree_json(tree), parse_constant=pytest.fail)


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="each of 2 columns, got 1"):
        Table(columns=("a", "b"), rows=((1,),))
