"""The page of a run: what stands on it, and that nothing in a run can write into it."""

import re
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.reports import format_html_pieces
from cookbook_fx.reports.figures import StepRewards
from cookbook_fx.reports.run_page import RunStory, report_page
from cookbook_fx.reports.samples import Sample, SampleColumn
from cookbook_fx.runs import CodeState, RunStart

LIBRARY = "/* the library */"


class Skeleton(HTMLParser):
    """All of a page but its texts: elements with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag):
        self.elements.append(("/", tag))

    def handle_comment(self, data):
        self.elements.append(("comment", data))

    def handle_decl(self, decl):
        self.elements.append(("declaration", decl))

    def unknown_decl(self, data):
        self.elements.append(("unknown", data))

    def handle_pi(self, data):
        self.elements.append(("instruction", data))

    def handle_data(self, data):
        self.text.append(data)


def story(text: str, *, name: str | None = None) -> RunStory:
    """A run that says `text` wherever a run can say something."""
    rows = [
        {
            "step": step,
            "env/all/reward/total": 0.25 * step,
            f"env/all/{text}": 1.0 + step,
            f"time/{text}": 1.0,
            "time/total": 3.0,
            "progress/done_frac": (step + 1) / 4,
        }
        | ({f"{text}/env/all/reward/total": 0.5} if step != 1 else {})
        for step in range(3)
    ]
    sample = Sample(
        heading=text, note=text, colored={"advantage": Markup(format_html_pieces([(text, 1.0)]))}
    )
    code = CodeState(commit=text, branch=text, changes=(text,), diff=text, left_out=text)
    return RunStory(
        name=text if name is None else name,
        rows=rows,
        config={"section": {text: text, "list": [text]}, text: None},
        state=text,
        starts=[
            RunStart(at=text, command=(text,), directory=text, packages={"jax": text}, code=code)
        ],
        diff=text,
        rewards=[StepRewards(step=step, rewards=np.array([0.0, 1.0, step])) for step in range(3)],
        samples=[SampleColumn(title=text, samples=(sample,))],
        remarks=(text,),
    )


@cache
def elements_of(*names: str) -> list[tuple[str, ...]]:
    """Of the page of runs that say nothing bad."""
    return Skeleton(
        report_page([story("xyz", name=name) for name in names], bokeh=LIBRARY)
    ).elements


HOSTILE = (
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)", "<!--", "-->", "]]>", "{{ 7 * 7 }}", "{% raw %}", "&lt;b&gt;",
    "</style>", "</title>", "</pre>", "@{x}", "$name", "\\", "\u2028", "\0", "javascript:alert(1)",
    "`${alert(1)}`",
)  # fmt: skip
texts = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=8), min_size=1, max_size=4).map(
    lambda parts: "x" + "".join(parts)
)


@settings(max_examples=6)
@given(texts)
def test_no_text_of_a_run_can_become_markup(text):
    page = report_page([story(text)], bokeh=LIBRARY)
    assert Skeleton(page).elements == elements_of("xyz")


@settings(max_examples=2)
@given(texts)
def test_no_text_of_compared_runs_can_become_markup(text):
    page = report_page([story(text), story(text, name="other")], bokeh=LIBRARY)
    assert Skeleton(page).elements == elements_of("xyz", "other")


def test_a_page_needs_nothing_but_itself():
    page = report_page([story("x")], bokeh=LIBRARY)
    assert LIBRARY in page
    assert not re.search(
        r"https?://|//[a-z]+\.|<link(?! rel=\"icon\" href=\"data:,\")|@import", page
    )
    assert "prefers-color-scheme: dark" in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page


def test_a_library_cannot_end_its_element():
    page = report_page([story("x")], bokeh='"</script><!--"')
    assert '"\\x3c/script>\\x3c!--"' in page


def test_a_page_shows_what_a_run_came_to():
    text = " ".join(Skeleton(report_page([story("told")], bokeh=LIBRARY)).text)
    for words in ("3 of 4", "Reward", "Environment: told", "Seconds a step", "9.0 s", "told"):
        assert words in re.sub(r"\s+", " ", text)


def test_runs_side_by_side_show_what_differs():
    one = RunStory(name="one", rows=[{"step": 0, "train_mean_nll": 2.0}], config={"a": 1, "b": 2})
    two = RunStory(name="two", rows=[{"step": 0, "train_mean_nll": 3.0}], config={"a": 5, "b": 2})
    page = report_page([one, two], bokeh=LIBRARY)
    assert "<tr><td>a</td><td>1</td><td>5</td></tr>" in page
    assert "<tr><td>b</td><td>2</td></tr>" in page
    assert page.count('type="checkbox"') == 2


def test_a_run_of_nothing_has_a_page():
    page = report_page([RunStory(name="new", rows=[])], bokeh=LIBRARY)
    assert "Nothing was measured yet." in page
    assert LIBRARY not in page


def test_long_runs_make_no_long_pages():
    rows = [
        {"step": step, "time/total": 1.0, "optim/lr": 1.0 / (step + 1)}
        | {f"env/all/m{number}": float(step % 7) for number in range(20)}
        for step in range(2000)
    ]
    page = report_page([RunStory(name="long", rows=rows, diff="x" * 10**6)], bokeh=LIBRARY)
    assert len(page.encode()) < 1_500_000


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_runs_without_names_of_their_own_are_refused(names):
    with pytest.raises(ConfigurationError, match="a name each"):
        report_page([RunStory(name=name, rows=[]) for name in names], bokeh=LIBRARY)
