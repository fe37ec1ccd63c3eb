"""What `pelton doctor` looks at: each check says what it found and, when it fails, the way out."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pelton.errors import PayloadUnavailable, PeltonError
from pelton.protocol.signing import Keyring
from pelton.protocol.topics import Control, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.log import KafkaFailure
from pelton.transport.payloads import ObjectStore
from pelton_platform import process
from pelton_platform.confinement import available, ways
from pelton_platform.deploy import image_root, instances
from pelton_platform.deploy.home import Home
from pelton_platform.deploy.interpreters import uv_command
from pelton_platform.deploy.resources import this_machine
from pelton_platform.embedded import EmbeddedKafkaError, verify
from pelton_platform.embedded.cache import locate
from pelton_platform.settings import PeltonSettings
from pelton_platform.supervisor import state as states
from pelton_platform.supervisor.state import PlatformState

OK = "ok"
WARNING = "warning"
FAILED = "failed"
SKIPPED = "skipped"

OLDEST_PYTHON = (3, 11)
MIN_FREE_BYTES = 512 * 1024 * 1024
LOW_FREE_BYTES = 2 * 1024 * 1024 * 1024
SKEW_WARNING_MS = 1_000
SKEW_FAILED_MS = 30_000
"""Attach looks one minute around the time in a call id: half of that is a reason to set the clock."""

_ROUND_TRIP_S = 5.0
_NOTE = ".doctor"
_PROBES = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: Name of the check.
        state: `ok`, `warning`, `failed` or `skipped`.
        text: One sentence; when it failed, with the way out.
    """

    check: str
    state: str
    text: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the checks look at; tests give their own.

    Attributes:
        settings: The settings.
        home: The home folder.
        state: The platform that runs, None when none does.
        fix: Whether to end what an earlier platform left behind.
    """

    settings: PeltonSettings
    home: Home
    state: PlatformState | None
    fix: bool = False


def run_checks(settings: PeltonSettings, *, fix: bool = False) -> list[Finding]:
    """Run every check; one that breaks is a failed one."""
    home = Home(settings.home)
    around = Surroundings(settings, home, states.running(home), fix)
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            findings += check(around)
        except (PeltonError, EmbeddedKafkaError, OSError, ValueError) as error:
            findings.append(Finding(name, FAILED, str(error)))
    return findings


def check_python(_: Surroundings) -> Iterator[Finding]:
    """Is this Python new enough, and can it find what the platform needs?"""
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        yield Finding("python", FAILED, f"Python {version} is too old; install Python {wanted} or newer")
        return
    yield Finding("python", OK, f"Python {version} at {sys.executable}")


def check_java(around: Surroundings) -> Iterator[Finding]:
    """Is there a Java for the embedded broker?"""
    if around.settings.bootstrap_servers is not None:
        yield Finding("java", SKIPPED, "not needed: bootstrap_servers names an existing Kafka")
        return
    java = locate().java
    faults = [fault for fault in verify(locate()) if fault.startswith(str(java))]
    yield Finding("java", FAILED, faults[0]) if faults else Finding("java", OK, f"Java runs at {java}")


def check_jars(around: Surroundings) -> Iterator[Finding]:
    """Are the jars of Apache Kafka what was pinned?"""
    if around.settings.bootstrap_servers is not None:
        yield Finding("jars", SKIPPED, "not needed: bootstrap_servers names an existing Kafka")
        return
    installation = locate()
    if not any(jar.exists() for jar in installation.jars):
        yield Finding("jars", WARNING, "Apache Kafka was not fetched yet; the first `pelton up` does it")
        return
    faults = [fault for fault in verify(installation) if not fault.startswith(str(installation.java))]
    if faults:
        more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
        yield Finding("jars", FAILED, f"{faults[0]}{more}")
        return
    yield Finding("jars", OK, f"{len(installation.jars)} jars have their pinned sums")


def check_home(around: Surroundings) -> Iterator[Finding]:
    """Can the home folder be used, and is what is secret in it private?"""
    home = around.home
    if not home.root.exists():
        yield Finding("home", OK, f"{home.root} will be made by `pelton up`")
        return
    if not os.access(home.root, os.W_OK | os.X_OK):
        yield Finding("home", FAILED, f"{home.root} cannot be written; chown it, or set PELTON_HOME")
        return
    key = around.settings.key_file or home.key_file(around.settings.namespace)
    if key.exists():
        Keyring.load(key)
    private = [
        path for path in (home.secrets_file, home.secrets_key_file, home.context_file) if path.exists()
    ]
    public = [path for path in private if path.stat().st_mode & 0o077]
    if public:
        names = " ".join(map(str, public))
        yield Finding("home", FAILED, f"others can read {names}; run: chmod 600 {names}")
        return
    yield Finding("home", OK, f"{home.root} is usable, its keys are private")


def check_disk(around: Surroundings) -> Iterator[Finding]:
    """Is there room for records?"""
    folder = _existing(around.home.root)
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB are free at {folder}"
    if free < MIN_FREE_BYTES:
        yield Finding("disk", FAILED, f"{text}; the broker needs 0.5 GiB: make room, or set PELTON_HOME")
    elif free < LOW_FREE_BYTES:
        yield Finding("disk", WARNING, f"{text}, which is little")
    else:
        yield Finding("disk", OK, text)


def check_payloads(around: Surroundings) -> Iterator[Finding]:
    """Can large payloads be kept?"""
    settings, home = around.settings, around.home
    if not settings.store and not home.root.exists():
        yield Finding("payloads", OK, f"{home.payloads} will be made when it is needed")
        return
    store = ObjectStore(settings.store or home.payloads.as_uri(), settings.store_options)
    try:
        store.write_note(_NOTE, b"pelton doctor")
        store.remove(_NOTE)
    except PayloadUnavailable as error:
        yield Finding("payloads", FAILED, f"{error}; see PELTON_STORE and PELTON_STORE_OPTIONS")
        return
    yield Finding("payloads", OK, f"{settings.store or home.payloads} takes payloads above 512 KiB")


def check_port(around: Surroundings) -> Iterator[Finding]:
    """Can the embedded broker have its port?"""
    if around.settings.bootstrap_servers is not None:
        yield Finding("port", SKIPPED, "not needed: bootstrap_servers names an existing Kafka")
        return
    if around.state is not None:
        yield Finding("port", OK, f"the platform's broker listens on {around.state.port}")
        return
    port = around.settings.port
    if port is None:
        yield Finding("port", OK, "`pelton up` takes a free one")
    elif process.port_is_free(port):
        yield Finding("port", OK, f"{port} is free")
    else:
        holder = process.listener(port)
        who = "" if holder is None else f" by {holder[1]} (pid {holder[0]})"
        yield Finding("port", FAILED, f"{port} is in use{who}; stop that program, or set PELTON_PORT")


def check_platform(around: Surroundings) -> Iterator[Finding]:
    """Does the platform run, with all its parts?"""
    state = around.state
    if state is None:
        yield Finding("platform", WARNING, f"none runs from {around.home.root}; start one: `pelton up`")
        return
    dead = [
        name
        for name, pid in (
            ("broker", state.broker_pid),
            ("deployer", state.deployer_pid),
            ("cron", state.cron_pid),
        )
        if pid and process.identify(pid) is None
    ]
    if dead:
        yield Finding(
            "platform",
            FAILED,
            f"the supervisor runs (pid {state.supervisor.pid}), but its {' and '.join(dead)} does not; "
            f"see {around.home.logs}",
        )
        return
    yield Finding("platform", OK, f"{state.phase}, pid {state.supervisor.pid}, home {state.home}")


def check_broker(around: Surroundings) -> Iterator[Finding]:
    """Does the broker acknowledge a record, how fast, and do its clock and ours agree?"""
    state = around.state
    servers = state.bootstrap_servers if state is not None else around.settings.bootstrap_servers
    if servers is None:
        yield Finding("broker", SKIPPED, "no platform runs")
        yield Finding("clock", SKIPPED, "no platform runs")
        return
    namespace = state.namespace if state is not None else around.settings.namespace
    config = ConnectionConfig(servers, namespace, around.settings.security)
    clock = BrokerClock()
    failure = probe(config, clock)
    if failure:
        yield Finding("broker", FAILED, f"Kafka at {servers} does not acknowledge a record: {failure}")
        yield Finding("clock", SKIPPED, "the broker does not answer")
        return
    took_ms = clock.round_trip_ms or 0.0
    yield Finding("broker", OK, f"Kafka at {servers} acknowledges a record in {took_ms:.1f} ms")
    yield judge_skew(clock.offset_ms)


def judge_skew(offset_ms: float) -> Finding:
    """Say what a difference between the broker's clock and ours means."""
    side = "ahead of" if offset_ms > 0 else "behind"
    text = f"the broker's clock is {abs(offset_ms):.0f} ms {side} this machine's"
    if abs(offset_ms) >= SKEW_FAILED_MS:
        return Finding("clock", FAILED, f"{text}; set the clocks, for example with NTP")
    if abs(offset_ms) >= SKEW_WARNING_MS:
        return Finding("clock", WARNING, text)
    return Finding("clock", OK, text)


def probe(config: ConnectionConfig, clock: BrokerClock, timeout_s: float = _ROUND_TRIP_S) -> str:
    """Append records that readers pass over; return why one was not acknowledged, "" if all were."""
    producer = RecordProducer(config, message_timeout_ms=round(timeout_s * 1000), clock=clock)
    topic = Topics(config.namespace).control(Control.LOGS)
    failures: list[str] = []

    def report(failure: KafkaFailure | None, *_: int) -> None:
        if failure is not None:
            failures.append(str(failure))

    try:
        deadline = time.monotonic() + timeout_s
        for _ in range(_PROBES):
            producer.send(topic, None, key=b"probe", on_report=report)
            left = producer.flush(max(0.1, deadline - time.monotonic()))
            if failures or left:
                return failures[0] if failures else f"no answer within {timeout_s:.0f} s"
    finally:
        producer.close(0.0)
    return ""


def check_orphans(around: Surroundings) -> Iterator[Finding]:
    """Did an earlier platform of this home leave processes behind?"""
    orphans = states.find_orphans(around.home)
    if not orphans:
        yield Finding("orphans", OK, "no process was left behind")
        return
    names = ", ".join(f"pid {orphan.identity.pid} ({orphan.what})" for orphan in orphans)
    if not around.fix:
        yield Finding("orphans", FAILED, f"left behind: {names}; end them with `pelton doctor --fix`")
        return
    states.end_orphans(orphans, 5.0)
    yield Finding("orphans", OK, f"ended what was left behind: {names}")


def check_images(_: Surroundings) -> Iterator[Finding]:
    """Can the environments of images be built, and how do programs see their files?"""
    uv = uv_command()
    if shutil.which(uv) is None:
        yield Finding("images", FAILED, "uv, which builds environments, is not there: `pip install uv`")
        return
    against = image_root.reason_against()
    if against:
        yield Finding(
            "images",
            WARNING,
            f"programs find the files of images by rewritten commands and {instances.ROOT_VARIABLE}, and "
            f"`run_commands` are left out: this machine gives no mount namespace ({against})",
        )
        return
    yield Finding("images", OK, "programs see the files of images at their paths, by mount namespaces")


def check_resources(_: Surroundings) -> Iterator[Finding]:
    """By what are cpu= and memory= of containers held here, and what is there to give?"""
    memory, cpu = ways(available())
    machine = this_machine()
    has = f"{machine.cores} cores, {machine.memory / 2**30:.1f} GiB, {machine.gpus} GPUs"
    text = f"{has}; memory= is held by {memory}; cpu= by {cpu}"
    yield Finding("resources", OK if available().memory else WARNING, text)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


Check = Callable[[Surroundings], Iterator[Finding]]

CHECKS: dict[str, Check] = {
    "python": check_python,
    "java": check_java,
    "jars": check_jars,
    "home": check_home,
    "disk": check_disk,
    "payloads": check_payloads,
    "images": check_images,
    "resources": check_resources,
    "port": check_port,
    "orphans": check_orphans,
    "platform": check_platform,
    "broker": check_broker,
}
"""Every check by name, in the order in which they are shown."""
