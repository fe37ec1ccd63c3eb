"""What `pelton_platform.settings` promises: sources, their order, and errors that name the setting."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from pelton_platform.settings import (
    SETTINGS,
    SettingsError,
    kafka_variables,
    load_settings,
    meaning_of,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without PELTON_* and a folder without pelton.toml."""
    import os

    for name in list(os.environ):
        if name.startswith("PELTON_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_settings_order_of_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line wins over the environment, then comes pelton.toml, then the default."""
    assert load_settings().namespace == "pelton"
    Path("pelton.toml").write_text('namespace = "from-file"\nport = 1234\n')
    assert load_settings().namespace == "from-file"
    monkeypatch.setenv("PELTON_NAMESPACE", "from-env")
    assert load_settings().namespace == "from-env"
    assert load_settings(namespace="given", port=None).namespace == "given"
    assert load_settings().port == 1234


def test_settings_kafka_and_env_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client settings come from `[security]` and PELTON_KAFKA_*, container variables from `[env]`."""
    Path("pelton.toml").write_text(
        '[security]\n"security.protocol" = "SSL"\nssl.ca.location = "ca.pem"\n'
        'enable.ssl.certificate.verification = true\n[env]\nTOKENIZERS = "1"\n'
    )
    monkeypatch.setenv("PELTON_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    settings = load_settings()
    assert settings.security == {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": "ca.pem",
        "enable.ssl.certificate.verification": "true",
    }
    assert settings.env == {"TOKENIZERS": "1"}
    assert kafka_variables({"PELTON_KAFKA_SASL_USERNAME": "a", "OTHER": "b"}) == {"sasl.username": "a"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30.0), ("1.5", 1.5), ("500ms", 0.5), ("5m", 300.0), ("1 h", 3600.0), ("PT2S", 2.0)],
)
def test_settings_durations(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    """Durations are seconds, or a number with a unit."""
    monkeypatch.setenv("PELTON_KEEP_WARM", text)
    assert load_settings().keep_warm == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("PELTON_PORT", "none", "PELTON_PORT"),
        ("PELTON_JAVA_FLAGS", "Xmx1g", "PELTON_JAVA_FLAGS"),
        ("PELTON_PORT", "0", "cannot be '0': Expected `int` >= 1"),
        ("PELTON_NAMESPACE", "a.b", "'a.b' cannot name a namespace"),
        ("PELTON_KEEP_WARM", "-1s", "PELTON_KEEP_WARM"),
        ("PELTON_DRAIN", "-PT1S", "it is at least 0"),
        ("PELTON_DRAIN", "soon", "PELTON_DRAIN"),
        ("PELTON_LOG_LEVEL", "LOUD", "PELTON_LOG_LEVEL"),
        ("PELTON_BUNDLE_LIMIT_MIB", "0", "PELTON_BUNDLE_LIMIT_MIB"),
        ("PELTON_SECURITY", "[1]", "PELTON_SECURITY"),
        ("PELTON_ENV", "{", "PELTON_ENV is a JSON object"),
        ("PELTON_ENV", '{"A B": "x"}', "'A B' is no name"),
    ],
)
def test_settings_bad_values_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    """A value that cannot be is refused in one line that names the setting."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_every_bad_value_is_named_at_once() -> None:
    """Two mistakes in pelton.toml are two complaints; values of a wrong type are among them."""
    Path("pelton.toml").write_text("port = 0\nnamespace = 5\nhome = 3\nkeep_warm = 7\n")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert [name in str(caught.value) for name in ("'port'", "'namespace'", "'home'", "'keep_warm'")] == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("variable", ["PELTON_SECURITY", "PELTON_ENV"])
@pytest.mark.parametrize(
    "value", ['{"sasl.password": "hunter2"', '{"a b": "hunter2", "c": 1}', '["hunter2"]']
)
def test_settings_complaints_about_tables_show_no_value(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Tables hold passwords: what is wrong is said without them."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_settings_tables_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable adds to the table of the file and wins over it name by name."""
    Path("pelton.toml").write_text('[env]\nA = "file"\nB = "file"\n')
    monkeypatch.setenv("PELTON_ENV", '{"B": "variable"}')
    assert load_settings().env == {"A": "file", "B": "variable"}


def test_settings_unknown_name_in_the_file_is_refused() -> None:
    """A misspelt setting in pelton.toml is not accepted and ignored."""
    Path("pelton.toml").write_text("keepwarm = 3\n")
    with pytest.raises(SettingsError, match="'keepwarm' is no setting; the settings are home"):
        load_settings()
    Path("pelton.toml").write_text("keep_warm = \n")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings()


def test_settings_file_of_a_folder_above(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The nearest pelton.toml at or above the current folder counts: subfolders belong to a project."""
    (tmp_path / "pelton.toml").write_text('namespace = "project"\n')
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    assert load_settings().namespace == "project"


def test_settings_home_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative home folder means the folder below the current one, `~` the user's."""
    monkeypatch.setenv("HOME", "/somewhere")
    assert load_settings().home == Path("/somewhere/.pelton")
    assert load_settings(home="state").home == tmp_path / "state"


def test_settings_are_all_documented() -> None:
    """docs/reference/settings.md names every setting with its variable and its meaning, and no other."""
    page = (ROOT / "docs/reference/settings.md").read_text()
    rows = {
        line.split("|")[1].strip(" `"): line
        for line in page.splitlines()
        if line.startswith("| `") and line.count("|") == 5
    }
    assert set(rows) == set(SETTINGS)
    for name in SETTINGS:
        assert ("PELTON_KAFKA_*" if name == "security" else f"`PELTON_{name.upper()}`") in rows[name]
        assert meaning_of(name) in rows[name]
