"""The deployer process: follows the registry and the backlog, and keeps a port at what they ask for."""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pelton.core.spec import ContainerSpec, FunctionSpec, InstanceStatus
from pelton.errors import PeltonError, TransportError
from pelton.protocol.signing import Keyring
from pelton.protocol.topics import Control, Topics
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.probe import Probe
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.kafka.ranges import RangeReader
from pelton.transport.payloads import store_of
from pelton_platform import telemetry
from pelton_platform.deploy import sweeping
from pelton_platform.deploy.backlog import Backlog, Count, Trimmer
from pelton_platform.deploy.home import write_json
from pelton_platform.deploy.instances import Surroundings
from pelton_platform.deploy.local import LocalDeployer
from pelton_platform.deploy.port import FAILED, DeployerPort
from pelton_platform.deploy.registry import Registry, RegistryWriter
from pelton_platform.deploy.scaler import BY_HAND, Lag, Scaler, Scaling
from pelton_platform.deploy.settings import DeployerSettings

LOOK_INTERVAL_S = 0.2
"""How often waiting calls are looked for: what a first call waits, at most, before an instance starts."""

LAG_INTERVAL_S = 1.0
"""How often is looked what programs have not read."""

HEARTBEAT_S = 2.0
MEASURES_S = 1.0
"""What is only measured (CPU, memory, rates) is told so often; all else at once."""

TRIM_INTERVAL_S = 60.0
GONE_AFTER_MS = 10_000
"""A status older than this, of an instance that nobody here knows, is of one that is gone."""

_CONNECT_TRY_S = 10.0
# What a deploy and a first call need. The rest is made later: a young broker is slow at creating topics.
_REST_AFTER_S = 5.0
_FIRST_TOPICS = (Control.FUNCTIONS, Control.CONTAINERS, Control.INSTANCES, Control.LOGS)
_log = telemetry.get_logger(__name__)


class Deployer:
    """One deployer: `run` returns after `stop` was called and every instance has ended."""

    def __init__(self, settings: DeployerSettings) -> None:
        self._settings = settings
        self._id = secrets.token_hex(4)
        self._keyring = Keyring.load(Path(str(settings.config.key_file)))
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._at_once = threading.Event()
        self._counts: tuple[int, dict[str, Count]] = (-1, {})
        self._lags: dict[str, Lag] = {}
        self._scaler = Scaler(settings.keep_warm_ms, settings.cool_down_ms, settings.drain_ms)
        self._scalings: dict[str, Scaling] = {}
        self._heard: dict[str, InstanceStatus] = {}
        self._ended: set[tuple[str, str]] = set()
        self._clock = BrokerClock()
        self._started_ms = 0
        self._written: dict[str, Any] = {}
        self._written_at = 0.0
        surroundings = Surroundings(
            settings.home,
            settings.config,
            settings.env,
            settings.drain_ms / 1000,
            settings.log_level,
            settings.over,
        )
        self._port: DeployerPort = LocalDeployer(surroundings, self._keyring, on_end=self._note_end)
        # Instances of a deployer before this one were needed until now, as far as anybody knows.
        now_ms = int(time.monotonic() * 1000)
        for state in self._port.observe():
            self._scaler.found(state.container, len(state.instances), now_ms)

    def stop(self, *, at_once: bool = False) -> None:
        """Ask `run` to stop all instances and return; may be called from a signal handler."""
        if at_once:
            self._at_once.set()
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Connect as soon as the broker answers, and work until told to stop."""
        connected = self._connect()
        if connected is None:
            return
        admin, registry, producer = connected
        writer = RegistryWriter(self._settings.config.namespace, producer)
        watcher = threading.Thread(target=self._watch, args=(admin, registry), name="backlog", daemon=True)
        sweeper = threading.Thread(target=self._sweep, args=(admin,), name="sweeper", daemon=True)
        try:
            self._started_ms = self._clock.now_ms()
            self._turn(registry, writer)
            watcher.start()
            sweeper.start()
            _log.info("deployer-ready", deployer=self._id)
            self._work(registry, writer)
            self._port.stop_all(self._at_once.is_set)
            self._bury(writer)
            writer.remove_status("", self._id)
            producer.flush(5.0)
        finally:
            for thread in (watcher, sweeper):
                if thread.ident is not None:
                    thread.join(timeout=_CONNECT_TRY_S)
            registry.close()
            producer.close()
            admin.close()

    # --- connecting ---

    def _connect(self) -> tuple[Admin, Registry, RecordProducer] | None:
        config = self._settings.config
        while not self._stopping.is_set():
            admin = Admin(config)
            # Made first: it connects while topics are made.
            producer = RecordProducer(config, clock=self._clock)
            try:
                brokers = len(admin.brokers(_CONNECT_TRY_S))
                topics = Topics(config.namespace)
                first = {topics.control(control) for control in _FIRST_TOPICS}
                plans = topics.control_topic_plans(brokers)
                admin.create_topics([plan for plan in plans if plan.name in first])
                probe = Probe(producer, topics.control(Control.LOGS))
                registry = Registry(config, self._keyring, self._wake.set)
                try:
                    registry.wait_end(_CONNECT_TRY_S)
                    probe.wait(config.bootstrap_servers)
                except TransportError:
                    registry.close()
                    raise
                return admin, registry, producer
            except TransportError as error:
                _log.warning("kafka-not-reached", reason=str(error))
                admin.close()
                producer.close(0.0)
                self._stopping.wait(0.2)
        return None

    # --- the backlog, on a thread of its own: a broker that does not answer must not hold the loop up ---

    def _watch(self, admin: Admin, registry: Registry) -> None:
        backlog = Backlog(admin, Topics(self._settings.config.namespace))
        trimmer = Trimmer(admin)
        next_trim = time.monotonic() + TRIM_INTERVAL_S
        make_rest = time.monotonic() + _REST_AFTER_S
        next_lag = 0.0
        while not self._stopping.is_set():
            began = time.monotonic()
            functions, containers, _ = registry.snapshot()
            try:
                before = self._counts[1], self._lags
                if functions:
                    backlog.look(functions)
                    self._counts = int(began * 1000), backlog.counts()
                if began >= next_lag:
                    next_lag = began + LAG_INTERVAL_S
                    self._lags = _lags(backlog, containers)
                if (self._counts[1], self._lags) != before:
                    self._wake.set()
                if began >= make_rest:
                    topics = Topics(self._settings.config.namespace)
                    admin.create_topics(topics.control_topic_plans(len(admin.brokers())))
                    make_rest = math.inf
                if began >= next_trim:
                    next_trim = began + TRIM_INTERVAL_S
                    self._trim(backlog, trimmer, functions)
            except TransportError as error:
                _log.warning("backlog-unknown", reason=str(error))
            # A platform with very many functions looks less often rather than filling a core with looking.
            spent = time.monotonic() - began
            self._stopping.wait(max(LOOK_INTERVAL_S - spent, spent))

    # --- large payloads, on a thread of its own: it reads all records of functions that have some ---

    def _sweep(self, admin: Admin) -> None:
        config = self._settings.config
        store = store_of(config)
        pause = sweeping.FIRST_AFTER_S
        while store is not None and not self._stopping.wait(pause):
            ranges = RangeReader(config)
            try:
                sweeping.sweep_once(store, admin, ranges, Topics(config.namespace))
            finally:
                ranges.close()
            pause = sweeping.INTERVAL_S

    def _trim(self, backlog: Backlog, trimmer: Trimmer, functions: Mapping[str, FunctionSpec]) -> None:
        served = {state.container for state in self._port.observe() if state.instances}
        for spec in functions.values():
            if spec.container not in served:
                trimmer.trim(backlog.committed(spec.name))

    # --- the loop ---

    def _work(self, registry: Registry, writer: RegistryWriter) -> None:
        next_beat = 0.0
        while not self._stopping.is_set():
            self._wake.clear()
            changed = self._turn(registry, writer)
            now = time.monotonic()
            if changed or now >= next_beat:
                self._beat(registry, writer)
                next_beat = now + HEARTBEAT_S
            if not changed:
                self._wake.wait(min(LOOK_INTERVAL_S, max(0.0, next_beat - now)))

    def _turn(self, registry: Registry, writer: RegistryWriter) -> bool:
        functions, containers, statuses = registry.snapshot()
        known = {state.container for state in self._port.observe()}
        for spec in containers.values():
            self._port.apply(spec)
        for name in known - containers.keys():
            self._port.remove(name)
        for status in statuses.values():
            if status.container and self._port.knows(status.instance):
                self._hear(status)
        self._scale(functions, containers)
        changed = self._port.turn()
        self._bury(writer)
        return self._publish() or changed

    def _hear(self, status: InstanceStatus) -> None:
        # Only what is new counts as heard: a status that stays in the registry says nothing by being there.
        if self._heard.get(status.instance) != status:
            self._heard[status.instance] = status
            self._port.heard(status)

    def _scale(self, functions: Mapping[str, FunctionSpec], containers: Mapping[str, ContainerSpec]) -> None:
        states = {state.container: state for state in self._port.observe()}
        self._scaler.observe(*self._counts, containers, states)
        now_ms = int(time.monotonic() * 1000)
        scalings = {}
        for spec in containers.values():
            lag = self._lags.get(spec.name)
            found = self._scaler.decide(spec, functions, states.get(spec.name), lag, now_ms)
            before = self._scalings.get(spec.name)
            if before is None or before.wanted != found.wanted:
                _log.info(
                    "container-scaled", container=spec.name, instances=found.wanted, reason=found.reason
                )
            self._port.scale(spec.name, found.wanted, spare_busy=found.spare_busy)
            scalings[spec.name] = found
        self._scalings = scalings

    # --- what it says ---

    def _note_end(self, container: str, instance: str) -> None:
        self._heard.pop(instance, None)
        self._ended.add((container, instance))

    def _bury(self, writer: RegistryWriter) -> None:
        while self._ended:
            writer.remove_status(*self._ended.pop())

    def _beat(self, registry: Registry, writer: RegistryWriter) -> None:
        """Say that this deployer lives, and speak for instances that cannot: the crashed and the gone."""
        now_ms = self._clock.now_ms()
        host = socket.gethostname()
        _, _, statuses = registry.snapshot()
        writer.write_status(
            InstanceStatus(
                container="",
                instance=self._id,
                state="ready",
                host=host,
                pid=os.getpid(),
                version=1,
                started_ms=self._started_ms,
                seen_ms=now_ms,
            )
        )
        failing: set[tuple[str, str]] = set()
        for state in self._port.observe():
            place = (state.container, f"{state.container}-{FAILED}")
            if state.reason and state.version and (state.refused or not state.instances):
                failing.add(place)
                writer.write_status(
                    InstanceStatus(
                        *place, FAILED, host, 0, state.version, seen_ms=now_ms, reason=state.reason
                    )
                )
        for place, status in statuses.items():
            if place in failing or place == ("", self._id) or self._port.knows(place[1]):
                continue
            spoken_for = place[1] == f"{place[0]}-{FAILED}" and status.host == host
            if spoken_for or now_ms - status.seen_ms > GONE_AFTER_MS:
                writer.remove_status(*place)

    def _publish(self) -> bool:
        """Write what became of each container where commands find it; True when it changed."""
        states = self._port.observe()
        data = {
            "pid": os.getpid(),
            "deployer": self._id,
            "containers": {state.container: asdict(state) for state in states},
        }
        scalings = {name: asdict(found) for name, found in self._scalings.items()}
        now = time.monotonic()
        by_hand = {name for name, found in self._scalings.items() if found.reason == BY_HAND}
        told = {"states": _without_measures(data), "by_hand": by_hand}
        changed = told != self._written
        if changed or now - self._written_at >= MEASURES_S:
            self._written, self._written_at = told, now
            write_json(self._settings.home.deployer_file, {**data, "scaling": scalings})
        return changed


def _without_measures(data: Mapping[str, Any]) -> dict[str, Any]:
    """What of the deployer's state file is told at once when it changes."""
    return {
        name: {
            **state,
            "instances": [{**one, "cpu": 0, "memory": 0, "running": 0} for one in state["instances"]],
        }
        for name, state in data["containers"].items()
    }


def _lags(backlog: Backlog, containers: Mapping[str, ContainerSpec]) -> dict[str, Lag]:
    """What programs that are scaled by it have not read."""
    found = {}
    for spec in containers.values():
        if spec.lag is not None:
            try:
                found[spec.name] = Lag(*backlog.lag(spec.lag))
            except TransportError as error:
                found[spec.name] = Lag(reason=str(error))
    return found


def serve(settings: DeployerSettings) -> None:
    """Run a deployer until SIGTERM or SIGINT; a second signal kills what still drains."""
    telemetry.set_up("deployer", level=settings.log_level)
    deployer = Deployer(settings)
    signals = 0

    def leave(*_: object) -> None:
        nonlocal signals
        signals += 1
        deployer.stop(at_once=signals > 1)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    try:
        deployer.run()
    except PeltonError as error:
        _log.error("deployer-failed", reason=str(error))
        raise SystemExit(1) from error
