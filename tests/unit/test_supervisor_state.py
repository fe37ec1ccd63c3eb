"""What is known of a platform from its files, also when they are stale or damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pelton_platform import process
from pelton_platform.deploy.home import Home, HomeError, exclusive, read_json, write_json
from pelton_platform.supervisor import state as states
from pelton_platform.supervisor.state import PlatformState
from pelton_platform.supervisor.view import describe, describe_changes


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A prepared home folder."""
    home = Home(tmp_path / "home")
    home.prepare()
    return home


def state_of(home: Home) -> PlatformState:
    """The state of a platform whose supervisor is this process."""
    return PlatformState(
        process.own_identity(), "ready", str(home.root), "pelton", "127.0.0.1:9092", 9092, 1, 2, "0.1.0"
    )


def test_supervisor_state_survives_its_file(home: Home) -> None:
    """What was written is read back, by whoever looks."""
    state = state_of(home)
    states.write_state(home, state)
    assert states.running(home) == state
    assert states.last_port(home) == 9092


def test_supervisor_recycled_pid_is_no_platform(home: Home) -> None:
    """A process that has the pid of a dead supervisor is not taken for it."""
    state = state_of(home)
    stranger = replace(state, supervisor=replace(state.supervisor, birth="of another process"))
    states.write_state(home, stranger)
    assert states.running(home) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"supervisor": {"pid": "x"}}'])
def test_supervisor_damaged_state_is_no_platform(home: Home, text: str) -> None:
    """A damaged state file does not keep a platform from starting."""
    home.supervisor_file.write_text(text)
    assert states.running(home) is None
    assert states.last_port(home) == 0


def test_supervisor_port_is_remembered_after_a_clean_stop(home: Home) -> None:
    """The port of the last run stays known when the state file is gone."""
    states.write_state(home, state_of(home))
    home.context_file.write_text("{}")
    states.forget_state(home)
    assert not home.context_file.exists()
    assert not home.supervisor_file.exists()
    assert states.last_port(home) == 9092


def test_supervisor_home_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A folder with other files is neither used nor emptied; one with `pelton kafka`'s data is used."""
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(HomeError, match=r"not empty \(it holds thesis\.txt\)"):
        Home(tmp_path).prepare()
    with pytest.raises(HomeError, match="no home folder"):
        states.purge(Home(tmp_path))
    neighbour = Home(tmp_path / "shared")
    (neighbour.root / "kafka").mkdir(parents=True)
    neighbour.prepare()
    states.purge(neighbour)
    assert [item.name for item in neighbour.root.iterdir()] == ["kafka"]


def test_supervisor_purge_refuses_while_a_platform_runs(home: Home) -> None:
    """Nothing is removed under a running platform."""
    states.write_state(home, state_of(home))
    with pytest.raises(HomeError, match="pelton down"):
        states.purge(home)


def test_supervisor_files_are_private_and_whole(home: Home) -> None:
    """Files are written for this user alone; what is no JSON object is refused with the way out."""
    path = home.run / "x.json"
    write_json(path, {"a": 1})
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_json(path) == {"a": 1}
    assert read_json(home.run / "missing.json") is None
    path.write_text("{")
    with pytest.raises(HomeError, match="remove it"):
        read_json(path)
    assert sorted(item.name for item in home.run.iterdir()) == ["instances", "x.json"]


def test_supervisor_lock_is_held_once(home: Home) -> None:
    """A second holder is told at once, and may have it when the first is done."""
    with exclusive(home.lock_file) as first:
        with exclusive(home.lock_file) as second:
            assert (first, second) == (True, False)
    with exclusive(home.lock_file) as again:
        assert again


def test_supervisor_tells_changes_of_containers_once() -> None:
    """One line for each container that changed, in words."""
    ready = {"instance": "a", "version": 1, "state": "ready"}
    draining = {"instance": "b", "version": 1, "state": "draining"}
    state = {"version": 1, "instances": [], "refused": False, "reason": "", "wanted": 0}
    assert describe(state) == "version 1, no instance"
    assert describe({**state, "instances": [ready, ready, draining]}) == "version 1, 2 ready, 1 draining"
    assert describe({**state, "reason": "it ended"}) == "version 1, no instance; it ended"
    refused = {**state, "refused": True, "reason": "not signed"}
    assert describe(refused) == "version 1 is refused: not signed"
    assert list(describe_changes({"c": state}, {"c": state})) == []
    assert list(describe_changes({"c": state}, {})) == ["c: removed"]
    assert list(describe_changes({}, {"c": refused})) == ["c: version 1 is refused: not signed"]
