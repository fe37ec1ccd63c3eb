"""A worker instance as a process: what it serves, how it says so, and how it ends."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import FrameType
from typing import Final

from pelton.core.spec import ContainerSpec, FunctionSpec, InstanceStatus
from pelton.errors import PeltonError, TransportError
from pelton.protocol.signing import Keyring
from pelton.protocol.topics import Control, Topics
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.calls import KafkaTransport
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.probe import Probe
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.kafka.ranges import RangeReader
from pelton.transport.payloads import store_of
from pelton_platform.coordinator import times
from pelton_platform.coordinator.cancellations import CancellationReader
from pelton_platform.coordinator.counters import Counters
from pelton_platform.coordinator.executors import ExecutorSettings
from pelton_platform.coordinator.host import FunctionHost, Services
from pelton_platform.coordinator.instance_file import InstanceFile
from pelton_platform.coordinator.output import OutputLog
from pelton_platform.coordinator.presence import Presence
from pelton_platform.coordinator.relay import Relay
from pelton_platform.coordinator.specs import NothingToServe, Served, check_code, read_specs
from pelton_platform.coordinator.trimming import Trimmer
from pelton_platform.redaction import Redactor

DRAIN_VARIABLE: Final = "PELTON_DRAIN_SECONDS"
"""Environment variable with the seconds that running calls get after SIGTERM."""

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_DEAF: Final = 3
"""Exit code of an instance that no longer took calls."""

SPECS_TIMEOUT_S: Final = 30.0
_PROBES: Final = 3
_LEAVE_TIMEOUT_S: Final = 15.0
_CLOSE_GRACE_S: Final = 2.0
_FLUSH_S: Final = 5.0
_HELPERS: Final = 4
_PAUSED_S: Final = 1.0
_log = logging.getLogger(__name__)


def drain_seconds(environ: Mapping[str, str]) -> float:
    """How long running calls may go on after SIGTERM.

    Raises:
        ValueError: the variable is no number of seconds.
    """
    text = environ.get(DRAIN_VARIABLE, "")
    if not text:
        return times.DRAIN_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise ValueError(f"{DRAIN_VARIABLE}={text!r} is no number of seconds from 0 to 86400")
    return seconds


class Deafness:
    """Finds out that poll threads stand still while this process runs: liveness follows consuming.

    Time in which the whole process stood still (SIGSTOP, a suspended machine) does not count.
    """

    def __init__(self, limit_s: float = times.DEAF_AFTER_S) -> None:
        self._limit_s = limit_s
        self._looked_at = time.monotonic()
        self._forgiven_at = self._looked_at

    def looks_deaf(self, now: float, polled_at: float) -> bool:
        """Whether nothing was polled for too long; called often.

        Args:
            now: monotonic seconds.
            polled_at: monotonic time of the last poll.
        """
        if now - self._looked_at > _PAUSED_S:
            self._forgiven_at = now
        self._looked_at = now
        return now - max(polled_at, self._forgiven_at) > self._limit_s


class Instance:
    """One worker instance; `run` is the whole life of the process.

    Args:
        file: who it is.
        drain_s: seconds that running calls get at the end.
    """

    def __init__(self, file: InstanceFile, drain_s: float) -> None:
        self._file = file
        self._drain_s = drain_s
        self._redact = Redactor(file.secrets)
        self._topics = Topics(file.namespace)
        self._counters = Counters(file.counters_path)
        self._clock = BrokerClock()
        self._hosts: list[FunctionHost] = []
        self._served: Served | None = None
        self._state = "starting"
        self._reason = ""
        self._started_ms = 0
        self._stop = threading.Event()
        self._failure: str = ""

    def run(self) -> int:
        """Serves until SIGTERM or SIGINT; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)
        with ExitStack() as stack:
            # What calls write and what the instance says go by clients of their own: output that user code
            # floods takes no room from outcomes, and each client has fewer partitions to look after.
            voice = self._producer(stack)
            producer = self._producer(stack)
            presence = Presence(voice, self._topics, self._file.container, self._file.instance)
            try:
                probe = self._probe(voice)
                try:
                    self._served = self._read_specs()
                finally:
                    self._learn_time(voice, probe)
                self._started_ms = self._clock.now_ms()
                presence.say(self._status())
                services = self._services(
                    stack, producer, OutputLog(voice, self._topics, self._counters, self._redact)
                )
                container = self._served.container
                self._hosts = [self._host(container, each, services) for each in self._served.functions]
                for host in self._hosts:
                    host.start()
                self._serve(presence)
                return self._end(presence, producer, voice)
            except (PeltonError, OSError) as error:
                self._fail(str(error))
                presence.say(self._status())
                voice.flush(_FLUSH_S)
                return EXIT_FAILED
            finally:
                self._write_counters()

    # ---- beginning ----

    def _asked_to_stop(self, number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _producer(self, stack: ExitStack) -> RecordProducer:
        producer = RecordProducer(
            self._file.connection,
            message_timeout_ms=times.MESSAGE_TIMEOUT_MS,
            clock=self._clock,
            on_fatal=self._renewed,
        )
        stack.callback(producer.close, _FLUSH_S)
        return producer

    def _probe(self, voice: RecordProducer) -> Probe:
        return Probe(voice, self._topics.control(Control.LOGS))

    def _learn_time(self, voice: RecordProducer, probe: Probe) -> None:
        """Waits until Kafka has told the time: before that nothing that depends on it may be said."""
        servers = self._file.bootstrap_servers
        for _ in range(_PROBES - 1):
            try:
                probe.wait(servers)
            except TransportError as error:
                _log.warning("trying again: %s", error)
                probe = self._probe(voice)
            else:
                return
        probe.wait(servers)

    def _read_specs(self) -> Served:
        keyring = Keyring.load(self._file.key_file)
        served = read_specs(self._file.connection, keyring, self._file.container, SPECS_TIMEOUT_S)
        for function in served.functions:
            if not (self._file.bundles / function.bundle).is_dir():
                raise NothingToServe(
                    f"the source of {function.name!r} is not at {self._file.bundles / function.bundle}: "
                    "deploy it again on this machine"
                )
            check_code(self._file.bundles, function, keyring)
        return served

    def _services(self, stack: ExitStack, producer: RecordProducer, output: OutputLog) -> Services:
        config = self._file.connection
        helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="pelton-helper")
        stack.callback(helpers.shutdown, wait=True, cancel_futures=True)
        ranges = RangeReader(config)
        stack.callback(ranges.close)
        admin = Admin(config)
        stack.callback(admin.close)
        exchange = self._file.exchange_path
        exchange.mkdir(mode=0o700, exist_ok=True)
        relay = Relay(lambda: KafkaTransport(config), store_of(config), exchange)
        stack.callback(relay.close, _FLUSH_S)
        cancellations = CancellationReader(config, self._clock.now_ms)
        stack.callback(cancellations.close, _FLUSH_S)
        cancellations.start()
        return Services(
            config=config,
            producer=producer,
            clock=self._clock,
            ranges=ranges,
            trimmer=Trimmer(admin, self._topics, helpers),
            output=output,
            counters=self._counters,
            helpers=helpers,
            relay=relay,
            cancellations=cancellations,
            keyring=Keyring.load(self._file.key_file),
            failed=self._host_failed,
        )

    def _host(self, container: ContainerSpec, function: FunctionSpec, services: Services) -> FunctionHost:
        executors = ExecutorSettings(
            namespace=self._file.namespace,
            function=function.name,
            kind=function.kind.value,
            module=function.module,
            qualname=function.qualname,
            bundle=self._file.bundles / function.bundle,
            slots=max(1, container.max_concurrent_requests),
            container=container.name,
            instance=self._file.instance,
            version=function.version,
            env={**self._file.env, **self._file.secrets},
            redact=self._redact,
            log_level=self._file.log_level.upper(),
            code=function.code,
            exchange=self._file.exchange_path,
            python=self._file.python,
            root=self._file.root,
            workdir=self._file.workdir,
            limits=self._file.limits,
        )
        return FunctionHost(function, executors, services)

    # ---- serving ----

    def _serve(self, presence: Presence) -> None:
        """The main thread's loop: time for the engines, status, counters, liveness."""
        deafness = {host: Deafness() for host in self._hosts}
        counted_at = told_at = 0.0
        while not self._stop.wait(self._pause()):
            self._turn(presence)
            now = time.monotonic()
            for host, watch in deafness.items():
                if watch.looks_deaf(now, host.polled_at):
                    self._die_deaf(host, presence)
            if now - counted_at >= times.COUNTERS_EVERY_S:
                counted_at = now
                self._write_counters()
            if now - told_at >= 10.0:
                told_at = now
                self._tell_clock()
                _log.debug("counters %s", self._counters.read())

    def _pause(self) -> float:
        return times.BUSY_TICK_S if any(host.busy for host in self._hosts) else times.IDLE_TICK_S

    def _turn(self, presence: Presence) -> None:
        for host in self._hosts:
            host.tick()
        if self._state != "draining":
            self._state = self._state_of_hosts()
        self._reason = "; ".join(filter(None, (host.trouble for host in self._hosts)))
        presence.say(self._status())

    def _state_of_hosts(self) -> str:
        if any(host.broken for host in self._hosts):
            return "failed"
        return "ready" if all(host.ready for host in self._hosts) else "starting"

    def _status(self) -> InstanceStatus:
        container = None if self._served is None else self._served.container
        return InstanceStatus(
            container=self._file.container,
            instance=self._file.instance,
            state=self._state,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=0 if container is None else container.version,
            functions=tuple(host.spec.name for host in self._hosts),
            slots=sum(host.slots for host in self._hosts),
            running=sum(host.running for host in self._hosts),
            executors=tuple(sorted(pid for host in self._hosts for pid in host.pids)),
            started_ms=self._started_ms,
            seen_ms=self._clock.now_ms(),
            reason=self._reason,
        )

    def _tell_clock(self) -> None:
        for host in self._hosts:
            host.set_clock(round(self._clock.offset_ms))

    def _write_counters(self) -> None:
        try:
            self._counters.write()
        except OSError as error:
            _log.warning("the counters are not written: %s", error)

    # ---- ending ----

    def _end(self, presence: Presence, producer: RecordProducer, voice: RecordProducer) -> int:
        """Drains, hands back the rest, leaves the groups."""
        self._state = "draining"
        deadline = time.monotonic() + (0.0 if self._failure else self._drain_s)
        for host in self._hosts:
            host.drain()
        self._turn(presence)
        while time.monotonic() < deadline and not all(host.idle for host in self._hosts):
            time.sleep(times.BUSY_TICK_S)
            self._turn(presence)
        left = self._leave_groups(presence)
        for host in self._hosts:
            host.close(_CLOSE_GRACE_S)
        if self._failure:
            self._fail(self._failure)
            presence.say(self._status())
            voice.flush(_FLUSH_S)
            return EXIT_FAILED
        presence.gone()
        unsent = producer.flush(_FLUSH_S) + voice.flush(_FLUSH_S)
        _log.info("ended: groups left %s, %d records unacknowledged, %s", left, unsent, self._counters.read())
        return EXIT_DONE

    def _leave_groups(self, presence: Presence) -> bool:
        """All hosts at once; the engines hear the time meanwhile, since handing back takes turns."""
        done: list[bool] = []
        threads = [
            threading.Thread(target=lambda host=host: done.append(host.leave(_LEAVE_TIMEOUT_S)), daemon=True)
            for host in self._hosts
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(times.BUSY_TICK_S)
            self._turn(presence)
        return all(done)

    def _host_failed(self, function: str, error: BaseException) -> None:
        """A host that cannot go on: the process ends, so that its partitions go to others."""
        if not self._failure:
            self._failure = f"{function} cannot be served any more: {type(error).__name__}: {error}"
            _log.critical(self._failure, exc_info=error)
        self._stop.set()

    def _renewed(self, reason: str) -> None:
        self._counters.add("producers_renewed")

    def _fail(self, reason: str) -> None:
        self._state, self._reason = "failed", reason
        _log.error("this instance failed: %s", reason)

    def _die_deaf(self, host: FunctionHost, presence: Presence) -> None:
        """Ends at once: a thread that stands still can not be asked to end."""
        self._fail(
            f"{host.spec.name} has not polled for {times.DEAF_AFTER_S:.0f} s: this instance takes no calls"
        )
        presence.say(self._status())
        self._write_counters()
        logging.shutdown()
        os._exit(EXIT_DEAF)
