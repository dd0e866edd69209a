from pathlib import Path

from shell.hub import home


def test_the_environment_chooses_and_a_tilde_is_the_users(monkeypatch):
    monkeypatch.setenv("COOKBOOK_FX_HOME", "~/elsewhere")
    assert home() == Path.home().resolve() / "elsewhere"


def test_unset_or_empty_is_the_default(monkeypatch):
    monkeypatch.delenv("COOKBOOK_FX_HOME")
    assert home() == Path.home().resolve() / ".cookbook-fx"
    monkeypatch.setenv("COOKBOOK_FX_HOME", "")
    assert home() == Path.home().resolve() / ".cookbook-fx"
