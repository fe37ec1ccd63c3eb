"""What `pelton.transport.config` promises about finding the platform and about secrets."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from pelton.errors import PlatformNotRunning, SignatureError
from pelton.protocol.signing import Keyring
from pelton.transport.config import ConnectionConfig, find_context, home_key_file
from pelton.transport.kafka.directory import trusted_keys
from pelton_platform.deploy.home import Home


def write_context(home: Path, **values: object) -> dict[str, str]:
    """A context file as a running platform leaves it; returns the environment that points there."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "context.json").write_text(json.dumps({"bootstrap_servers": "127.0.0.1:9", **values}))
    return {"PELTON_HOME": str(home)}


def test_environment_wins_over_every_file(tmp_path: Path) -> None:
    """`PELTON_BOOTSTRAP_SERVERS` is used although a project file and a context name other brokers."""
    environ = write_context(tmp_path / "home", namespace="other")
    (tmp_path / "pelton.toml").write_text('bootstrap_servers = "127.0.0.1:8"')
    environ |= {"PELTON_BOOTSTRAP_SERVERS": "127.0.0.1:7", "PELTON_KAFKA_SASL_USERNAME": "ada"}
    found = find_context(environ=environ, folder=tmp_path)
    assert found.bootstrap_servers == "127.0.0.1:7"
    assert found.namespace == "pelton"
    assert dict(found.security) == {"sasl.username": "ada"}


def test_project_file_is_found_above_and_may_nest_its_settings(tmp_path: Path) -> None:
    """A `pelton.toml` above counts; dotted security settings and booleans reach the client as texts."""
    (tmp_path / "pelton.toml").write_text(
        'bootstrap_servers = "127.0.0.1:8"\nnamespace = "team"\nkey_file = "keys/pelton"\n'
        '[security]\nsasl.username = "ada"\nenable.ssl.certificate.verification = false\n'
    )
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    found = find_context(environ={"PELTON_HOME": str(tmp_path / "none")}, folder=below)
    assert found.bootstrap_servers == "127.0.0.1:8"
    assert found.namespace == "team"
    assert found.key_file == tmp_path / "keys" / "pelton"
    assert dict(found.security) == {
        "sasl.username": "ada",
        "enable.ssl.certificate.verification": "false",
    }


def test_context_of_the_local_platform_is_used_and_the_environment_adds_to_it(tmp_path: Path) -> None:
    """The context file of a running platform is taken, with what the environment says on top."""
    environ = write_context(
        tmp_path / "home", namespace="mine", security={"sasl.username": "ada"}, key_file="/k", pid=os.getpid()
    )
    environ |= {"PELTON_NAMESPACE": "yours", "PELTON_KAFKA_SASL_PASSWORD": "x"}
    found = find_context(environ=environ, folder=tmp_path)
    assert (found.namespace, found.key_file) == ("yours", Path("/k"))
    assert dict(found.security) == {"sasl.username": "ada", "sasl.password": "x"}


def test_no_platform_names_everything_that_was_tried(tmp_path: Path) -> None:
    """The error names the variable, the project file, the context and the command that starts a platform."""
    with pytest.raises(PlatformNotRunning) as caught:
        find_context(environ={"PELTON_HOME": str(tmp_path / "home")}, folder=tmp_path)
    for part in ("PELTON_BOOTSTRAP_SERVERS", "pelton.toml", "context.json", "pelton up"):
        assert part in str(caught.value)


def test_context_left_by_a_dead_process_is_no_platform(tmp_path: Path) -> None:
    """A context whose process is gone is not used, and the message says so."""
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    environ = write_context(tmp_path / "home", pid=int(gone.stdout))
    with pytest.raises(PlatformNotRunning, match="which is gone"):
        find_context(environ=environ, folder=tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"bootstrap_servers": ""}'])
def test_broken_context_is_said_and_not_passed_over(tmp_path: Path, text: str) -> None:
    """A context file that cannot be read is an error with the way out, never an empty context."""
    (tmp_path / "context.json").write_text(text)
    with pytest.raises(ValueError, match="`pelton up` writes it anew"):
        find_context(environ={"PELTON_HOME": str(tmp_path)}, folder=tmp_path)


def test_the_object_store_is_named_like_everything_else(tmp_path: Path) -> None:
    """By the context of a platform, by a project, and by the environment, which wins."""
    options = {"endpoint": "http://127.0.0.1:1", "region": "r"}
    environ = write_context(tmp_path / "home", store="file:///a", store_options=options, pid=os.getpid())
    found = find_context(environ=environ, folder=tmp_path)
    assert (found.store, dict(found.store_options)) == ("file:///a", options)
    environ |= {"PELTON_STORE": "s3://b/c", "PELTON_STORE_OPTIONS": '{"region": "q"}'}
    found = find_context(environ=environ, folder=tmp_path)
    assert (found.store, found.store_options["region"]) == ("s3://b/c", "q")
    (tmp_path / "pelton.toml").write_text(
        'bootstrap_servers = "h:1"\nstore = "s3://d"\n[store_options]\nregion = "p"\n'
    )
    found = find_context(environ={}, folder=tmp_path)
    assert (found.store, dict(found.store_options)) == ("s3://d", {"region": "p"})
    assert ConnectionConfig("h:1", home=tmp_path).store == ""
    for text in ("[]", "no json"):
        with pytest.raises(ValueError, match="PELTON_STORE_OPTIONS is no JSON object"):
            find_context(environ={"PELTON_STORE_OPTIONS": text}, folder=tmp_path)


@pytest.mark.parametrize("store", ["/folder", "file://folder", "file:folder", "ftp://host/x", "s3:///prefix"])
def test_an_address_that_names_no_store_is_refused(store: str) -> None:
    """Before anything is connected; the message shows what one looks like."""
    with pytest.raises(ValueError, match=r"give (file:///folder|s3://bucket/prefix)"):
        ConnectionConfig("h:1", store=store)


def test_secrets_are_never_shown_and_the_config_travels_to_processes() -> None:
    """Neither `repr` nor `str` holds a value of the security settings; a pickled config is equal."""
    options = {"secret_access_key": "hunter2"}
    config = ConnectionConfig(
        "h:1", security={"sasl.password": "hunter2"}, store="s3://b", store_options=options
    )
    assert "secret_access_key" in repr(config)
    assert "hunter2" not in repr(config)
    assert "hunter2" not in str(config)
    assert "sasl.password" in repr(config)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("servers", "namespace", "security"),
    [("", "p", {}), (" ,", "p", {}), ("h:1", "1p", {}), ("h:1", "a.b", {}), ("h:1", "p", {"acks": "1"})],
)
def test_config_that_cannot_work_is_refused(servers: str, namespace: str, security: dict[str, str]) -> None:
    """No address, a namespace Kafka would confuse, and settings that would break a guarantee are refused."""
    with pytest.raises(ValueError):
        ConnectionConfig(servers, namespace, security)


def test_a_context_without_a_key_file_is_verified_with_the_key_of_the_home_folder(tmp_path: Path) -> None:
    """A project file with security settings and no key file leads to the key the platform keeps at home."""
    home = Home(tmp_path / "home")
    home.keys.mkdir(parents=True)
    ring = Keyring.create(home.key_file("team"), "team")
    (tmp_path / "pelton.toml").write_text(
        'bootstrap_servers = "127.0.0.1:8"\nnamespace = "team"\n[security]\nsasl.username = "ada"\n'
    )
    found = find_context(environ={"PELTON_HOME": str(home.root)}, folder=tmp_path)
    assert home_key_file(found) == home.key_file("team")
    keys = trusted_keys(found)
    assert keys is not None
    assert keys.open("function-spec", ring.seal("function-spec", b"spec")) == b"spec"


def test_the_home_folder_of_the_variable_counts_when_a_connection_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`connect(servers)` without a home folder finds the key in `$PELTON_HOME`; a named key file wins."""
    monkeypatch.setenv("PELTON_HOME", str(tmp_path))
    (tmp_path / "keys").mkdir()
    ring = Keyring.create(tmp_path / "keys" / "team.json", "team")
    named = Keyring.create(tmp_path / "named.json", "team")
    at_home = trusted_keys(ConnectionConfig("h:1", "team"))
    chosen = trusted_keys(ConnectionConfig("h:1", "team", key_file=tmp_path / "named.json"))
    assert at_home is not None and chosen is not None
    assert (at_home.key_ids, chosen.key_ids) == (ring.key_ids, named.key_ids)


def test_a_home_folder_without_a_key_that_fits_leaves_nothing_to_verify_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file, a file of another namespace, and no home at all are no key; one open to others is refused."""
    config = ConnectionConfig("h:1", "team", home=tmp_path)
    assert trusted_keys(config) is None
    (tmp_path / "keys").mkdir()
    path = tmp_path / "keys" / "team.json"
    Keyring.create(path, "elsewhere")
    assert trusted_keys(config) is None
    path.chmod(0o644)
    with pytest.raises(SignatureError, match="chmod 600"):
        trusted_keys(config)

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("PELTON_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert trusted_keys(ConnectionConfig("h:1", "team")) is None
