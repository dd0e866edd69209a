"""What was said, told from what a template writes itself."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers.provenance import Marks, Said, Span, Written, chat_template, written

CONTROL = re.compile(r"<\|end\|>|<end>")
MARKS = Marks(key="q0f", control=CONTROL, inside_space=False)
TEXT = st.lists(st.sampled_from(["<|end|>", "<end>", " ", "\n", "a", "B", "é", '"', "1"])).map(
    "".join
)


def of(text, source=0, marks=MARKS):
    return Said(text, marks, source)


def read(text, marks=MARKS):
    return written(str(text), marks)


def test_what_is_written_out_shows_what_was_said():
    assert read("<end>" + of("a <end>", 3) + "!<end>") == Written(
        "<end>a <end>!<end>", (Span(5, 12, 3),)
    )


def test_white_space_at_the_edges_may_stay_outside():
    trimming = Marks(key="q0f", control=CONTROL, inside_space=True)
    said = of(" \n a b \t", marks=trimming)
    assert read(f"[{said}]", trimming) == Written("[ \n a b \t]", (Span(4, 7, 0),))
    assert read(f"[{said}]".strip("[]").strip(), trimming) == Written("a b", (Span(0, 3, 0),))
    assert read(of(" \n", marks=trimming), trimming).text == " \n"


METHODS = {
    "strip": lambda text: text.strip(),
    "lstrip": lambda text: text.lstrip("\n<"),
    "rstrip": lambda text: text.rstrip(" "),
    "first": lambda text: text[:3],
    "backwards": lambda text: text[::-1],
    "upper": lambda text: text.upper(),
    "title": lambda text: text.title(),
    "replace": lambda text: text.replace("<end>", "<|end|>"),
    "split": lambda text: "|".join(text.split("<end>")),
    "lines": lambda text: "|".join(text.splitlines()),
    "rsplit": lambda text: "|".join(text.rsplit(maxsplit=1)),
    "partition": lambda text: "|".join(text.partition("a")),
    "removeprefix": lambda text: text.removeprefix("a").removesuffix("B"),
    "letters": lambda text: "|".join(text),
    "in front": lambda text: "[" + text,
    "behind": lambda text: text + "]",
    "format": lambda text: "[{}]".format(text),  # noqa: UP032
    "percent": lambda text: "[%s]" % (text,),  # noqa: UP031
    "twice": lambda text: text * 2,
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@given(text=TEXT)
def test_what_comes_of_said_text_is_the_same_text_and_said(method, text):
    expected = METHODS[method](text)
    result = read(METHODS[method](of(text)))
    assert result.text == expected
    own = "".join(run for run, is_said in result.runs(0, len(expected)) if not is_said)
    assert set(own) <= set("|[]")


@given(text=TEXT, other=TEXT)
def test_said_text_compares_as_the_text_it_is(text, other):
    said = of(text)
    assert (said == other, other == said, said != other) == (
        text == other, text == other, text != other,
    )  # fmt: skip
    assert (said < other, said >= of(other, 1)) == (text < other, text >= other)
    assert (other in said, len(said), bool(said), hash(said)) == (
        other in text, len(text), bool(text), hash(text),
    )  # fmt: skip
    assert (said.find(other), said.count("a"), said.startswith(("a", other))) == (
        text.find(other), text.count("a"), text.startswith(("a", other)),
    )  # fmt: skip
    assert {said: 1}[text] == 1


@pytest.mark.parametrize(
    "marked",
    [
        "a" + str(of("b"))[:-1],
        str(of("b"))[5:],
        str(of("a")).replace("a", str(of("b"))),
        str(of("<end>")).replace("q0fb0x", "").replace("q0fe", ""),
    ],
)
def test_marks_that_do_not_fit_together_are_refused(marked):
    with pytest.raises(DataError, match="takes this conversation's text apart"):
        read(marked)


def test_how_one_text_begins_another():
    one, other = (
        Written("[ab]", (Span(1, 3, 0),)),
        Written("[ab][c", (Span(1, 3, 0), Span(5, 6, 1))),
    )
    assert other.begins_with(one)
    assert not one.begins_with(other)
    assert not other.begins_with(one._replace(spans=(Span(1, 3, 1),)))
    assert not other.begins_with(Written("[ab][c", (Span(1, 3, 0),)))
    assert other.until(4) == one
    # What is empty stands on either side of a border.
    assert Written("[]", (Span(1, 1, 0),)).begins_with(Written("[", ()))


def test_runs_are_cut_where_asked():
    text = Written("[ab][c]", (Span(1, 3, 0), Span(5, 6, 1)))
    assert list(text.runs(0, 7)) == [
        ("[", False),
        ("ab", True),
        ("][", False),
        ("c", True),
        ("]", False),
    ]
    assert list(text.runs(2, 5)) == [("b", True), ("][", False)]
    assert list(text.runs(3, 3)) == []


def test_templates_run_with_what_transformers_gives_them():
    source = "{{ x }}{{ {'a': messages[0].c} | tojson(indent=1, sort_keys=true) }}"
    template = chat_template(source, {"x": "!"}, date=None)
    assert template.write([{"c": 'é"'}], None, asks=False) == '!{\n "a": "é\\""\n}'
    assert read(template.write([{"c": of('é"')}], None, asks=False)).spans == (Span(10, 13, 0),)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages.x.y }}",
        "{{ 'a' + 1 }}",
        "{{ [] | first + 'a' }}",
    ],
)
def test_a_template_that_fails_says_so(source):
    with pytest.raises(DataError, match="the chat template refuses this conversation: "):
        chat_template(source, {}, date=None).write([], None, asks=True)


def test_a_template_cannot_leave_its_sandbox():
    source = "{{ messages[0].c.__class__.__mro__ }}"
    with pytest.raises(DataError, match=r"refuses this conversation: .*unsafe"):
        chat_template(source, {}, date=None).write([{"c": of("a")}], None, asks=False)


def test_what_is_no_template_says_where():
    with pytest.raises(ConfigurationError, match="not Jinja, line 2: "):
        chat_template("\n{% if %}", {}, date=None)
