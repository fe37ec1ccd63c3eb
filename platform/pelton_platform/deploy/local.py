"""The local deployer: containers as process groups on this machine, kept as the plan says."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from pelton.core.spec import ContainerSpec, InstanceStatus
from pelton.errors import SignatureError
from pelton.protocol.signing import Keyring
from pelton_platform import process, telemetry
from pelton_platform.deploy import bundles, instances
from pelton_platform.deploy.environments import Environment, Environments
from pelton_platform.deploy.home import HomeError
from pelton_platform.deploy.instances import Running, Surroundings
from pelton_platform.deploy.metering import Metering
from pelton_platform.deploy.plan import Crashes, Kill, Live, Start, Workload, after_exit, backoff_ms, plan
from pelton_platform.deploy.port import (
    DRAINING,
    READY,
    STARTING,
    STOPPING,
    ContainerState,
    InstanceState,
    status_of,
)
from pelton_platform.deploy.resources import shortcomings, this_machine
from pelton_platform.deploy.secret_store import SecretError, SecretStore

_log = telemetry.get_logger(__name__)
_LAST_WORDS = 300

STEADY_MS = 5_000
"""A program that ended again and again is well when it was ready for so long: one that dies later than it
starts is in a crash loop too."""


class LocalDeployer:
    """Implements `DeployerPort` with processes.

    `turn` does what is due; it is called again and again by one thread. Instances outlive a deployer that
    dies: the next one of the same home takes them over.

    Args:
        surroundings: What all instances have in common.
        keyring: Verifies bundles.
        on_end: Told of every instance that has ended: container, instance.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        keyring: Keyring,
        *,
        on_end: Callable[[str, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._surroundings = surroundings
        self._keyring = keyring
        self._on_end = on_end
        self._clock = clock
        self._lock = threading.RLock()
        self._specs: dict[str, ContainerSpec] = {}
        self._counts: dict[str, int] = {}
        self._spares_busy: dict[str, bool] = {}
        self._metering = Metering()
        self._refused: dict[str, str] = {}
        self._crashes: dict[str, Crashes] = {}
        self._running: dict[str, Running] = {}
        self._live: dict[str, Live] = {}
        self._environments = Environments(surroundings.home)
        self._secrets = SecretStore(surroundings.home)
        self._building: dict[str, threading.Thread] = {}
        self._notes: dict[str, tuple[str, ...]] = {}
        for found in instances.find_running(surroundings.home):
            _log.info("instance-taken-over", instance=found.instance, container=found.container)
            self._hold(found)

    # --- the port ---

    def apply(self, spec: ContainerSpec) -> None:
        """Make this the version of the container; a bundle that does not verify refuses it."""
        with self._lock:
            known = self._specs.get(spec.name)
            if known == spec:
                return
            self._specs[spec.name] = spec
            self._counts.setdefault(spec.name, spec.least_instances)
            self._refused.pop(spec.name, None)
            self._verify(spec)
            _log.info("container-applied", container=spec.name, version=spec.version)

    def scale(self, container: str, count: int, *, spare_busy: bool = False) -> None:
        """Set how many instances the container should have."""
        with self._lock:
            if container in self._specs:
                self._counts[container] = count
                self._spares_busy[container] = spare_busy

    def remove(self, container: str) -> None:
        """Stop all instances of a container and forget it."""
        with self._lock:
            if self._specs.pop(container, None) is not None:
                _log.info("container-removed", container=container)
            for known in (self._counts, self._spares_busy, self._refused, self._crashes, self._notes):
                known.pop(container, None)

    def observe(self) -> Sequence[ContainerState]:
        """Return what there is now, also containers that are on their way out."""
        with self._lock:
            names = sorted({*self._specs, *(one.container for one in self._live.values())})
            return [self._state(name) for name in names]

    def logs(self, container: str, lines: int) -> Iterator[str]:
        """Yield the last lines that instances of a container wrote outside of calls."""
        home = self._surroundings.home
        for path in instances.instance_logs(home, container)[-3:]:
            yield from instances.log_tail(path, lines)

    # --- the loop ---

    def turn(self) -> bool:
        """Notice what ended, and do what the plan says; True when something was done."""
        with self._lock:
            changed = self._notice_ends()
            pids = {instance: one.identity.pid for instance, one in self._running.items()}
            self._metering.measure(self._clock(), pids)
            for action in plan(
                self._now_ms(), self._workloads(), list(self._live.values()), self._crashes, self._drain_ms
            ):
                changed = True
                if isinstance(action, Start):
                    self._start(action)
                elif isinstance(action, Kill):
                    self._kill(action)
                else:
                    self._stop(action.instance, action.why)
            return changed

    def heard(self, status: InstanceStatus) -> None:
        """Take in what an instance says of itself."""
        with self._lock:
            one = self._live.get(status.instance)
            if one is None:
                return
            now_ms = self._now_ms()
            ready_ms = one.ready_ms
            if status.state == READY and ready_ms is None:
                ready_ms = now_ms
                _log.info("instance-ready", instance=one.instance, after_ms=now_ms - one.started_ms)
            elif status.state == STARTING and ready_ms is not None:
                ready_ms = None
                _log.warning("instance-not-ready", instance=one.instance, reason=status.reason)
            self._live[one.instance] = replace(
                one,
                heard_ms=now_ms,
                running=status.running,
                slots=status.slots,
                reason=status.reason,
                ready_ms=ready_ms,
            )

    def stop_all(self, also: Callable[[], bool] = lambda: False) -> None:
        """Stop every instance and wait until they have ended; those that do not in time are killed.

        Args:
            also: Asked again and again; once it says True everything is killed at once.
        """
        with self._lock:
            for container in list(self._specs):
                self.remove(container)
        wait = threading.Event()
        while True:
            self.turn()
            with self._lock:
                if not self._live:
                    return
                if also():
                    for instance in list(self._live):
                        self._kill(Kill(instance, "the platform stops at once"))
            wait.wait(0.02)

    def knows(self, instance: str) -> bool:
        """Say whether an instance is one of this deployer's that runs."""
        with self._lock:
            return instance in self._live

    def crashes(self) -> Mapping[str, Crashes]:
        """Return the crashes of containers that have not recovered from them."""
        with self._lock:
            return dict(self._crashes)

    # --- inside ---

    @property
    def _drain_ms(self) -> int:
        return round(self._surroundings.drain_s * 1000)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _workloads(self) -> dict[str, Workload]:
        return {
            name: Workload(name, spec.version, self._counts[name], self._spares_busy.get(name, False))
            for name, spec in self._specs.items()
            if name not in self._refused
        } | {
            # What cannot run is no reason to stop what runs: the version before stays until it is replaced.
            name: Workload(name, one.version, 1)
            for one in self._live.values()
            if (name := one.container) in self._refused and one.stopping_ms is None
        }

    def _verify(self, spec: ContainerSpec) -> bool:
        try:
            bundles.verify(spec.bundle, self._surroundings.home.bundles, self._keyring)
        except SignatureError as error:
            if spec.name not in self._refused:
                telemetry.alarm(
                    _log, "bundle-refused", container=spec.name, version=spec.version, reason=str(error)
                )
            self._refused[spec.name] = str(error)
            return False
        return True

    def _start(self, action: Start) -> None:
        spec = self._specs[action.container]
        if spec.version != action.version or not self._verify(spec):
            return
        try:
            environment = self._environment(spec)
            if environment is None:
                return
            values = self._secrets.values_for(spec.name, spec.secrets)
            taken = {one.port for one in self._running.values()}
            running = instances.start(spec, self._surroundings, environment, values, taken)
        except (OSError, HomeError, SecretError) as error:
            self._count_crash(spec.name, spec.version, f"it cannot be started: {error}")
            return
        self._hold(running)
        _log.info("instance-started", instance=running.instance, container=spec.name, version=spec.version)

    def _environment(self, spec: ContainerSpec) -> Environment | None:
        """Return where the image of a container runs; None while it is built, which a deploy mostly did."""
        found = self._environments.find(spec.image)
        if found is not None:
            self._notes[spec.name] = found.notes
        elif spec.name not in self._building:
            builder = threading.Thread(target=self._build, args=(spec,), name="builder", daemon=True)
            self._building[spec.name] = builder
            builder.start()
        return found

    def _build(self, spec: ContainerSpec) -> None:
        """Build the image of a container again, after it was removed or the platform has another version."""
        try:
            self._environments.build(
                spec.image, f"container {spec.name!r}", lambda line: _log.info("image-build", said=line)
            )
        except Exception as error:
            # Whatever it is: a container whose image cannot be built is refused, and says why.
            _log.error("image-not-built", container=spec.name, reason=str(error))
            with self._lock:
                if self._specs.get(spec.name) == spec:
                    self._refused[spec.name] = str(error)
        finally:
            with self._lock:
                del self._building[spec.name]

    def _hold(self, running: Running) -> None:
        now_ms = self._now_ms()
        self._running[running.instance] = running
        self._live[running.instance] = Live(
            running.instance, running.container, running.version, now_ms, None, now_ms
        )

    def _stop(self, instance: str, why: str) -> None:
        _log.info("instance-stopping", instance=instance, why=why)
        self._live[instance] = replace(self._live[instance], stopping_ms=self._now_ms())
        identity = self._running[instance].identity
        process.send_signal(identity, signal.SIGTERM)
        process.send_signal(identity, signal.SIGCONT)

    def _kill(self, action: Kill) -> None:
        _log.warning("instance-killed", instance=action.instance, why=action.why)
        process.send_group_signal(self._running[action.instance].identity, signal.SIGKILL)

    def _notice_ends(self) -> bool:
        changed = False
        for instance, running in list(self._running.items()):
            how = running.ended()
            if how is None:
                continue
            changed = True
            one = self._live.pop(instance)
            del self._running[instance]
            instances.tidy(self._surroundings.home, running)
            if one.stopping_ms is None:
                words = self._last_words(running)
                reason = f"{how}{': ' + words if words else ''}"
                crashes = after_exit(self._crashes.get(one.container), one, self._now_ms(), reason)
                if crashes is not None and one.container in self._specs:
                    self._crashes[one.container] = crashes
            else:
                reason = how
            _log.info("instance-ended", instance=instance, reason=reason, asked=one.stopping_ms is not None)
            if self._on_end is not None:
                self._on_end(one.container, instance)
        return changed

    def _count_crash(self, container: str, version: int, reason: str) -> None:
        now_ms = self._now_ms()
        never = Live("", container, version, now_ms, None, now_ms)
        crashes = after_exit(self._crashes.get(container), never, now_ms, reason)
        if crashes is not None:
            self._crashes[container] = crashes
        _log.warning("instance-not-started", container=container, reason=reason)

    def _last_words(self, running: Running) -> str:
        path = instances.log_file(self._surroundings.home, running.container, running.instance)
        lines = [line for line in instances.log_tail(path, 20) if line.strip()]
        return lines[-1].strip()[-_LAST_WORDS:] if lines else ""

    def _state(self, container: str) -> ContainerState:
        spec = self._specs.get(container)
        mine = [one for one in self._live.values() if one.container == container]
        states = tuple(
            self._instance_state(one) for one in sorted(mine, key=lambda one: (one.started_ms, one.instance))
        )
        if spec is None:
            return ContainerState(container, 0, 0, states, "it was removed", status=STOPPING)
        refused = self._refused.get(container, "")
        crash = self._crash_reason(spec)
        crashes = self._crashes.get(container)
        wanted = self._counts[container]
        return ContainerState(
            container,
            spec.version,
            wanted,
            states,
            refused or crash or ("its image is built" if container in self._building else ""),
            bool(refused),
            (*self._notes.get(container, ()), *shortcomings(spec, this_machine())),
            status_of(
                wanted,
                states,
                crashing=bool(crash)
                and crashes is not None
                and crashes.count > 1
                and not any(self._ready_for(one, STEADY_MS) for one in mine),
                refused=bool(refused),
            ),
        )

    def _instance_state(self, one: Live) -> InstanceState:
        running, use = self._running[one.instance], self._metering.of(one.instance)
        return InstanceState(
            one.instance,
            one.version,
            running.identity.pid,
            _phase(one),
            one.reason,
            running.port,
            one.running,
            one.slots,
            use.cpu,
            use.memory,
        )

    def _ready_for(self, one: Live, needed_ms: int) -> bool:
        return one.ready_ms is not None and self._now_ms() - one.ready_ms >= needed_ms

    def _crash_reason(self, spec: ContainerSpec) -> str:
        crashes = self._crashes.get(spec.name)
        if crashes is None or crashes.version != spec.version:
            return ""
        needed_ms = 0 if crashes.count == 1 else STEADY_MS
        if any(
            one.container == spec.name
            and one.started_ms >= crashes.last_ms
            and self._ready_for(one, needed_ms)
            for one in self._live.values()
        ):
            return ""
        if crashes.count == 1:
            return crashes.reason
        pause_s = backoff_ms(crashes.count) / 1000
        return f"{crashes.reason} ({crashes.count} times in a row; a new start every {pause_s:g} s)"


def _phase(one: Live) -> str:
    if one.stopping_ms is not None:
        return DRAINING
    return READY if one.ready_ms is not None else STARTING
