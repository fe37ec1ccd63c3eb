"""An embedded broker that outlives the command that started it, and how later commands find it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pelton_platform import process
from pelton_platform.embedded.broker import HOST, EmbeddedKafka, discard
from pelton_platform.embedded.cache import Progress, file_lock
from pelton_platform.embedded.failure import EmbeddedKafkaError

# Not the folder of the broker that belongs to a platform in the same home.
_FOLDER = "standalone-kafka"
_STATE_FILE = "broker.json"


@dataclass(frozen=True, slots=True)
class Status:
    """What is known about the broker of a state folder.

    Attributes:
        running: Its process is alive.
        bootstrap_servers: Address for clients; of the last run when it is not running; None if it never ran.
        pid: Pid of the process; None when it is not running.
        port: Port for clients, like `bootstrap_servers`.
        data_dir: Folder of its records; None if it never ran or the records were temporary and are gone.
        log: The server's log, like `data_dir`.
        temporary: The records go when it stops.
    """

    running: bool
    bootstrap_servers: str | None
    pid: int | None
    port: int | None
    data_dir: Path | None
    log: Path | None
    temporary: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain data, paths as text."""
        return {key: str(v) if isinstance(v, Path) else v for key, v in asdict(self).items()}


def up(
    state_dir: Path,
    port: int = 0,
    *,
    data_dir: Path | None = None,
    temporary: bool = False,
    config: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    java_flags: Sequence[str] = (),
    timeout: float = 60,
) -> Status:
    """Start a broker that goes on running; one that runs already is left alone.

    Args:
        state_dir: Folder by which `down` and `status` find it.
        port: Port for clients; 0 takes the port of the last run, or a free one.
        data_dir: Where records are kept; in `state_dir` unless told.
        temporary: Delete the records when the broker stops.
        config: Broker settings that win over the embedded defaults.
        cache_dir: Where the jars are kept.
        progress: Gets lines for a person; stderr unless told.
        java_flags: Further flags for the virtual machine.
        timeout: Seconds for the start, without fetching.

    Raises:
        EmbeddedKafkaError: It cannot be started, or it runs on another port or folder than asked for.
    """
    if temporary and data_dir is not None:
        raise EmbeddedKafkaError("a data folder is kept, temporary records have none: choose one of the two")
    folder = _folder(state_dir)
    with file_lock(folder / "lock", lambda: None):
        present = status(state_dir)
        if present.running:
            _refuse_another(present, port, data_dir, temporary)
            return present
        last_port = present.port or 0
        if port == 0 and last_port and process.port_is_free(last_port):
            # Clients that kept the address go on with it.
            port = last_port
        kafka = EmbeddedKafka(
            None if temporary else data_dir or folder / "data",
            port=port,
            config=config,
            cache_dir=cache_dir,
            progress=progress,
            die_with_parent=False,
            java_flags=java_flags,
        )
        kafka.start(timeout)
        _write_state(
            folder,
            {
                "process": kafka.identity.to_json(),
                "port": kafka.port,
                "data_dir": str(kafka.data_dir),
                "log": str(kafka.log_path),
                "temporary": temporary,
            },
        )
        kafka.release()
        return status(state_dir)


def down(state_dir: Path, timeout: float = 15) -> Status:
    """Stop the broker of a state folder and return what is left of it; nothing happens if none runs.

    Records stay unless they were temporary.
    """
    folder = _folder(state_dir)
    if not (folder / _STATE_FILE).exists():
        return status(state_dir)
    with file_lock(folder / "lock", lambda: None):
        state = _read_state(folder)
        identity = None if state is None else _identity(state)
        if state is None or identity is None:
            return status(state_dir)
        process.terminate(identity, timeout, group=True)
        discard(Path(state["data_dir"]), identity, temporary=state["temporary"])
        gone = {"data_dir": None, "log": None} if state["temporary"] else {}
        _write_state(folder, {**state, **gone, "process": None, "temporary": False})
        return status(state_dir)


def status(state_dir: Path) -> Status:
    """Return what is known about the broker of a state folder; nothing is changed."""
    state = _read_state(_folder(state_dir))
    if state is None:
        return Status(False, None, None, None, None, None, False)
    identity = _identity(state)
    alive = identity is not None and process.is_alive(identity)
    return Status(
        running=alive,
        bootstrap_servers=f"{HOST}:{state['port']}",
        pid=identity.pid if identity is not None and alive else None,
        port=state["port"],
        data_dir=_path(state["data_dir"]),
        log=_path(state["log"]),
        temporary=state["temporary"],
    )


def _folder(state_dir: Path) -> Path:
    return state_dir.expanduser().absolute() / _FOLDER


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _identity(state: Mapping[str, Any]) -> process.ProcessIdentity | None:
    return None if state["process"] is None else process.ProcessIdentity.from_json(state["process"])


def _refuse_another(present: Status, port: int, data_dir: Path | None, temporary: bool) -> None:
    other_folder = data_dir is not None and data_dir.expanduser().absolute() != present.data_dir
    if (port and port != present.port) or other_folder or temporary != present.temporary:
        kind = "temporary records" if present.temporary else f"records in {present.data_dir}"
        raise EmbeddedKafkaError(
            f"a broker runs already at {present.bootstrap_servers} with {kind} (pid {present.pid}): use that "
            "one, or stop it first with: pelton kafka down"
        )


def _read_state(folder: Path) -> dict[str, Any] | None:
    path = folder / _STATE_FILE
    try:
        state = json.loads(path.read_text())
        if not isinstance(state["port"], int) or not isinstance(state["temporary"], bool):
            raise ValueError("port or temporary")
        _identity(state), _path(state["data_dir"]), _path(state["log"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EmbeddedKafkaError(
            f"{path} cannot be read ({error}); make sure that no broker runs on {folder} and delete the file"
        ) from error
    return dict(state)


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    fresh = folder / f"{_STATE_FILE}.new"
    fresh.write_text(json.dumps(state, indent=1) + "\n")
    fresh.replace(folder / _STATE_FILE)
