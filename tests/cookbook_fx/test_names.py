"""Things by name and by place."""

import math

import pytest

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.names import added, imported, is_place, named

TABLE = {"chatml": 1, "llama3": 2}


@pytest.mark.parametrize("name", ["math:sqrt", "package.module:factory", "_a1.b:_c"])
def test_a_place_is_a_module_and_a_name_in_it(name):
    assert is_place(name)


@pytest.mark.parametrize(
    "name",
    [
        "chatml",
        "a.b",
        "Qwen/Qwen3-8B:peft",
        "smollm2-135m:peft",
        ":f",
        "a:",
        "a:b:c",
        "1a:b",
        "a b:c",
    ],
)
def test_other_names_are_no_places(name):
    assert not is_place(name)


def test_what_is_in_the_table_comes_from_it_and_the_rest_is_imported():
    assert named("llama3", TABLE, what="a number") == 2
    assert named("math:sqrt", TABLE, what="a number") is math.sqrt
    assert named("math:sqrt", {"math:sqrt": 3}, what="a number") == 3


def test_an_unknown_name_is_answered_with_the_known_ones_and_the_near_ones():
    with pytest.raises(
        ConfigurationError, match=r"a number must be one of chatml, llama3, or "
    ) as error:
        named("chatlm", TABLE, what="a number")
    assert str(error.value).endswith("got 'chatlm'; did you mean chatml?")
    with pytest.raises(ConfigurationError, match=r"got 'zzz'$"):
        named("zzz", TABLE, what="a number")


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("no_such_package:f", r"there is no module no_such_package; .* PYTHONPATH"),
        ("json.no_such_module:f", r"there is no module json\.no_such_module"),
        ("math:no_such_function", "math has no function no_such_function"),
        ("math:pi", "math has no function pi"),
    ],
)
def test_a_place_where_nothing_is_says_what_is_missing(place, error):
    with pytest.raises(ConfigurationError, match=error):
        imported(place, what="a number")


def test_what_a_module_itself_lacks_is_not_blamed_on_the_name(tmp_path, monkeypatch):
    (tmp_path / "lacks_something.py").write_text("import something_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_that_is_not_there"):
        imported("lacks_something:f", what="a number")


def test_adding_leaves_the_table_as_it_is():
    assert added(TABLE, "mine", 3, what="a number") == {"chatml": 1, "llama3": 2, "mine": 3}
    assert "mine" not in TABLE


@pytest.mark.parametrize(("name", "reason"), [("chatml", "taken"), ("a:b", "colon"), ("", "empty")])
def test_a_name_must_be_new_and_no_place(name, reason):
    with pytest.raises(ConfigurationError, match=reason):
        added(TABLE, name, 3, what="a number")
