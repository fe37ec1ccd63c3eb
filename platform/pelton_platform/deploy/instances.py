"""Instances of the local deployer as processes: their files, their environment, their start and their end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from pelton.core.spec import ContainerSpec
from pelton.transport.config import ConnectionConfig
from pelton_platform import process, telemetry
from pelton_platform.cgroups import sweep
from pelton_platform.confinement import available
from pelton_platform.deploy.default_env import default_environment
from pelton_platform.deploy.environments import Environment
from pelton_platform.deploy.home import HOME_VARIABLE, Home, HomeError, read_json, write_json
from pelton_platform.deploy.images import image_environment, working_folder
from pelton_platform.deploy.resources import limits_of, this_machine
from pelton_platform.deploy.secret_store import hand_over

INSTANCE_VARIABLE = "PELTON_INSTANCE"
DRAIN_VARIABLE = "PELTON_DRAIN_SECONDS"
PORT_VARIABLE = "PORT"
"""The TCP port at which a program with a port listens."""

ROOT_VARIABLE = "PELTON_IMAGE_ROOT"
"""Where the files of the image lie, for programs on machines that cannot show them at their own places."""

_KEPT_LOGS = 20
_LOG_TAIL_BYTES = 4096
# What a program of a user needs of the machine; nothing else of the platform's environment reaches it.
_MACHINE_VARIABLES = (
    "HOME",
    "LANG",
    "LANGUAGE",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "USER",
)

_log = telemetry.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every instance of a platform has in common.

    Attributes:
        home: The home folder.
        config: How to reach Kafka.
        env: Default variables of containers by the settings.
        over: Those that the command line gave, which win.
        drain_s: Seconds a stopping instance may take.
        log_level: Least level of the instance's own log lines.
    """

    home: Home
    config: ConnectionConfig
    env: Mapping[str, str]
    drain_s: float
    log_level: str = "INFO"
    over: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Running:
    """An instance that was started, here or by a deployer before this one.

    Attributes:
        instance: Its id.
        container: Its container.
        version: Container version it runs.
        identity: Its first process, the leader of its group.
        port: TCP port that its program was given, 0 for none.
        child: The same as a child; None when it was started by a deployer before this one.
    """

    instance: str
    container: str
    version: int
    identity: process.ProcessIdentity
    child: subprocess.Popen[bytes] | None
    port: int = 0

    def ended(self) -> str | None:
        """Return how it ended, for people; None while it runs."""
        if self.child is None:
            return None if process.is_alive(self.identity) else "it ended"
        code = self.child.poll()
        if code is None:
            return None
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"


def start(
    spec: ContainerSpec,
    surroundings: Surroundings,
    environment: Environment,
    secret_values: Mapping[str, str],
    taken_ports: Collection[int] = (),
) -> Running:
    """Start an instance of a container whose bundle was verified, and whose image was built.

    Args:
        spec: The container.
        surroundings: What all instances have in common.
        environment: What its image became.
        secret_values: Values of its secrets by variable.
        taken_ports: Ports that other instances were given; they may not listen there yet.

    Raises:
        OSError: The process cannot be started, or its files cannot be written.
    """
    home = surroundings.home
    instance = f"{spec.name}-{token_hex(3)}"
    folder = home.instances / instance
    folder.mkdir(mode=0o700, parents=True)
    try:
        config = folder / "instance.json"
        port = _choose_port(spec.port, taken_ports)
        settings = instance_settings(spec, instance, surroundings, environment, port)
        write_json(config, settings | {"secrets": bool(secret_values)})
        module = "pelton_platform.deploy.program" if spec.entrypoint else "pelton_platform.coordinator"
        log = log_file(home, spec.name, instance)
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("ab") as output, _handed_over(secret_values) as secrets_in:
            child = process.spawn(
                [sys.executable, "-m", module, "--instance", str(config)],
                env=_process_environment(surroundings, instance),
                cwd=folder,
                stdin=secrets_in,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        identity = process.identify(child.pid)
        if identity is None:
            raise OSError(f"instance {instance} ended at once")
        write_json(
            folder / "state.json",
            {"container": spec.name, "version": spec.version, "process": identity.to_json(), "port": port},
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _drop_old_logs(home, spec.name)
    return Running(instance, spec.name, spec.version, identity, child, port)


def instance_settings(
    spec: ContainerSpec,
    instance: str,
    surroundings: Surroundings,
    environment: Environment,
    port: int = 0,
) -> dict[str, Any]:
    """Return what an instance is told in its file."""
    home, config = surroundings.home, surroundings.config
    defaults = default_environment(home, surroundings.env, surroundings.over)
    env = {**defaults, **image_environment(spec.image), **dict(spec.env)}
    # Bundles are read-only and shared: compiled Python goes elsewhere.
    env.setdefault("PYTHONPYCACHEPREFIX", str(home.pycache))
    env[INSTANCE_VARIABLE] = instance
    if port:
        env[PORT_VARIABLE] = str(port)
    limits = limits_of(spec, this_machine())
    env = {**_variables_of(environment, os.environ), **env}
    settings: dict[str, Any] = {
        "namespace": config.namespace,
        "bootstrap_servers": config.bootstrap_servers,
        "security": dict(config.security),
        "key_file": str(config.key_file),
        "store": config.store,
        "store_options": dict(config.store_options),
        "container": spec.name,
        "instance": instance,
        "version": spec.version,
        "bundles": str(home.bundles),
        "env": env,
        "log_level": surroundings.log_level.lower(),
        "python": environment.python,
        "root": "" if environment.root is None else str(environment.root),
        "workdir": working_folder(spec.image),
        "folder": str(home.bundles / spec.bundle),
        "drain_s": surroundings.drain_s,
        "memory": limits.memory,
        "cpu": limits.cpu,
        "secret_variables": [asdict(secret) for secret in spec.secrets],
    }
    if spec.entrypoint:
        settings["env"] = {**machine_environment(os.environ), **platform_environment(surroundings), **env}
        settings["entrypoint"] = list(spec.entrypoint)
        settings["port"] = port
        settings["readiness"] = spec.readiness and asdict(spec.readiness)
        settings["liveness"] = spec.liveness and asdict(spec.liveness)
        settings["log"] = str(log_file(home, spec.name, instance))
    return settings


def _choose_port(wanted: int, taken: Collection[int]) -> int:
    """Return the port of a program: the one it names where that is free, else another; 0 for none."""
    if not wanted or (wanted not in taken and process.port_is_free(wanted)):
        return wanted
    while (port := process.free_port()) in taken:
        continue
    return port


@contextlib.contextmanager
def _handed_over(values: Mapping[str, str]) -> Iterator[int]:
    """Give what an instance reads the values of its secrets from: they stand in no file."""
    if not values:
        yield subprocess.DEVNULL
        return
    handle = hand_over(values)
    try:
        yield handle
    finally:
        os.close(handle)


def _variables_of(environment: Environment, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which programs find what an image has."""
    found: dict[str, str] = {}
    if environment.root is not None:
        found[ROOT_VARIABLE] = str(environment.root)
    if environment.is_separate:
        found["PATH"] = os.pathsep.join((environment.binaries, environ.get("PATH", os.defpath)))
        found["VIRTUAL_ENV"] = str(Path(environment.binaries).parent)
        # What the platform itself was given to find its packages by is not the image's.
        found["PYTHONPATH"] = ""
    return found


def machine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a user's program gets of the machine; `python` is the platform's own."""
    own = str(Path(sys.executable).parent)
    kept = {name: value for name, value in environ.items() if name in _MACHINE_VARIABLES or name[:3] == "LC_"}
    return {**kept, "PATH": os.pathsep.join((own, environ.get("PATH", os.defpath))), "PYTHONUNBUFFERED": "1"}


def platform_environment(surroundings: Surroundings) -> dict[str, str]:
    """Return the variables by which the SDK in a plain program finds this platform."""
    config = surroundings.config
    found = {
        "PELTON_HOME": str(surroundings.home.root),
        "PELTON_BOOTSTRAP_SERVERS": config.bootstrap_servers,
        "PELTON_NAMESPACE": config.namespace,
        HOME_VARIABLE: str(surroundings.home.root),
    }
    if config.store:
        found["PELTON_STORE"] = config.store
    if config.store_options:
        found["PELTON_STORE_OPTIONS"] = json.dumps(dict(config.store_options))
    if config.key_file is not None:
        found["PELTON_KEY_FILE"] = str(config.key_file)
    for name, value in config.security.items():
        found["PELTON_KAFKA_" + name.upper().replace(".", "_")] = value
    return found


def find_running(home: Home) -> Iterator[Running]:
    """Yield the instances that a deployer before this one started and that still run; forget the others."""
    for folder in sorted(home.instances.iterdir()):
        try:
            state = read_json(folder / "state.json")
            identity = process.ProcessIdentity.from_json(state["process"]) if state is not None else None
            if state is not None and identity is not None and process.is_alive(identity):
                found = str(state["container"]), int(state["version"])
                yield Running(folder.name, *found, identity, None, int(state.get("port", 0)))
                continue
        except (HomeError, KeyError, ValueError) as error:
            _log.warning("instance-state-unreadable", instance=folder.name, reason=str(error))
        # A deployer that died before it wrote down what it had started: nobody else would ever end that.
        _end_left_behind(folder.name)
        shutil.rmtree(folder, ignore_errors=True)


def bundles_of_live(home: Home) -> set[str]:
    """Return the digests of the source snapshots that instances run."""
    found = set()
    for file in home.instances.glob("*/instance.json"):
        with contextlib.suppress(HomeError):
            found.add(Path((read_json(file) or {}).get("folder", "")).name)
    return found


def tidy(home: Home, running: Running) -> None:
    """After the end of an instance: end what its programs left behind, and remove its files but the log."""
    with contextlib.suppress(PermissionError):
        process.send_group_signal(running.identity, signal.SIGKILL)
    _end_left_behind(running.instance)
    shutil.rmtree(home.instances / running.instance, ignore_errors=True)
    # What was killed has not removed its control groups.
    sweep(available(), running.instance)


def _end_left_behind(instance: str) -> None:
    for left in process.processes_with_environment(INSTANCE_VARIABLE, instance):
        _log.warning("process-left-behind", instance=instance, left_pid=left.pid)
        process.terminate(left, 1.0)


def log_file(home: Home, container: str, instance: str) -> Path:
    """Return where the output of an instance goes."""
    return home.instance_logs / container / f"{instance}.log"


def log_tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log, at most 4 KiB; none if there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-lines:] if lines > 0 else []


def instance_logs(home: Home, container: str) -> list[Path]:
    """Return the logs of a container's instances, oldest first."""
    try:
        logs = list((home.instance_logs / container).glob("*.log"))
    except OSError:
        return []
    return sorted(logs, key=lambda path: path.stat().st_mtime)


def _drop_old_logs(home: Home, container: str) -> None:
    for path in instance_logs(home, container)[:-_KEPT_LOGS]:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _process_environment(surroundings: Surroundings, instance: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PELTON_")}
    if telemetry.LOG_FORMAT_VARIABLE in os.environ:
        kept[telemetry.LOG_FORMAT_VARIABLE] = os.environ[telemetry.LOG_FORMAT_VARIABLE]
    return {
        **kept,
        HOME_VARIABLE: str(surroundings.home.root),
        INSTANCE_VARIABLE: instance,
        DRAIN_VARIABLE: f"{surroundings.drain_s:g}",
    }
