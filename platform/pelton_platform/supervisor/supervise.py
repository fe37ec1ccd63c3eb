"""The supervisor: starts broker and deployer, starts them again when they end, and stops them in order."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pelton.errors import PeltonError
from pelton.protocol.signing import Keyring
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton_platform import process
from pelton_platform.deploy.home import (
    HOME_VARIABLE,
    Home,
    HomeError,
    exclusive,
    read_json,
    write_json,
)
from pelton_platform.deploy.secret_store import SecretStore
from pelton_platform.deploy.settings import DeployerSettings
from pelton_platform.embedded import EmbeddedKafka
from pelton_platform.supervisor import state as states
from pelton_platform.supervisor.cron import CronChild
from pelton_platform.supervisor.doorman import Doorman
from pelton_platform.supervisor.logins import (
    BROKERS,
    MECHANISM,
    PASSWORD,
    USERNAME,
    choose_port,
    provide_login,
)
from pelton_platform.supervisor.settings import SupervisorSettings
from pelton_platform.supervisor.state import AlreadyRunning, PlatformState
from pelton_platform.supervisor.view import describe_changes

USUAL_PORT = 9092

Tell = Callable[[str], None]

_LOOK_S = 0.1
_DEPLOYER_READY_S = 30.0
_REACH_S = 10.0
_RESTART_FIRST_S = 0.5
_RESTART_MAX_S = 30.0
_HEALTHY_S = 60.0
_MAX_LOG_BYTES = 16 * 1024 * 1024
# What the deployer needs beyond the drain time of instances, which it kills itself when that is over.
_STOP_MARGIN_S = 10.0
# A laptop that sleeps for weeks still knows what was finished when it wakes.
_OFFSETS_RETENTION_MINUTES = 365 * 24 * 60


class SupervisorError(PeltonError):
    """The platform cannot be started or kept; the message says why."""


class Supervisor:
    """One platform: `with Supervisor(...) as s: s.start(); s.watch()`.

    Args:
        settings: What it is told.
        tell: Gets one line for people for each thing that happens.
    """

    def __init__(self, settings: SupervisorSettings, tell: Tell) -> None:
        self._settings = settings
        self._tell = tell
        self._home = Home(settings.home)
        self._stack = contextlib.ExitStack()
        self._stop = threading.Event()
        self._at_once = threading.Event()
        self._broker: EmbeddedKafka | None = None
        self._deployer: subprocess.Popen[bytes] | None = None
        self._config: ConnectionConfig | None = None
        self._state: PlatformState | None = None
        self._restarts: dict[str, tuple[int, float]] = {}
        self._due: dict[str, float] = {}
        self._sasl_port = 0
        self._doorman: Doorman | None = None
        self._cron = CronChild()

    def __enter__(self) -> Supervisor:
        """Return the supervisor."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop whatever was started."""
        try:
            self.shut_down()
        finally:
            self._stack.close()

    def ask_to_stop(self) -> None:
        """Make `watch` return; asked twice, what still drains is killed. Signal handlers may call it."""
        if self._stop.is_set():
            self._at_once.set()
        self._stop.set()

    # --- start ---

    def start(self) -> PlatformState:
        """Start everything and return when calls can be made.

        Raises:
            AlreadyRunning: A platform runs from this home.
            HomeError: The home folder cannot be used.
            EmbeddedKafkaError: The broker cannot be started.
            PeltonError: Kafka cannot be reached, or the deployer does not start.
        """
        began = time.monotonic()
        home = self._home
        home.prepare()
        if not self._stack.enter_context(exclusive(home.lock_file)):
            self._refuse()
        self._end_orphans()
        os.environ[HOME_VARIABLE] = str(home.root)
        key_file = self._key()
        embedded = self._settings.bootstrap_servers is None
        port = self._choose_port() if embedded else 0
        if self._settings.sasl:
            if not embedded:
                raise SupervisorError("logins are made at the embedded broker alone: leave out --sasl")
            self._sasl_port = choose_port(SecretStore(home))
        self._config = ConnectionConfig(
            bootstrap_servers=self._settings.bootstrap_servers or f"{process.LOOPBACK}:{port}",
            namespace=self._settings.namespace,
            security=self._settings.security,
            key_file=key_file,
            home=home.root,
            store=self._settings.store or home.payloads.as_uri(),
            store_options=self._settings.store_options,
        )
        self._doorman = Doorman(self._settings.gateway_port)
        self._stack.callback(self._doorman.close)
        self._state = PlatformState(
            supervisor=process.own_identity(),
            phase=states.STARTING,
            home=str(home.root),
            namespace=self._config.namespace,
            bootstrap_servers=self._config.bootstrap_servers,
            port=port,
            gateway=self._doorman.address,
            version=metadata.version("pelton"),
        )
        states.write_state(home, self._state)
        # The deployer loads while the broker starts, and connects as soon as that answers.
        self._start_deployer()
        if embedded:
            self._start_broker(port)
            if self._sasl_port:
                self._provide_login()
        else:
            self._reach()
        self._await_deployer(began)
        self._write_context()
        self._note(states.READY)
        self._tell(f"gateway at {self._doorman.address}")
        self._tell(f"ready after {time.monotonic() - began:.1f} s")
        return self._state

    def _refuse(self) -> None:
        deadline = time.monotonic() + 2.0
        while (state := states.running(self._home)) is None and time.monotonic() < deadline:
            self._stop.wait(_LOOK_S)
        if state is None:
            raise SupervisorError(f"another process holds {self._home.lock_file}; try again in a moment")
        raise AlreadyRunning(state)

    def _end_orphans(self) -> None:
        orphans = states.find_orphans(self._home)
        for orphan in orphans:
            self._tell(
                f"ending what an earlier platform left behind: pid {orphan.identity.pid}, {orphan.what}"
            )
        states.end_orphans(orphans, 5.0)

    def _key(self) -> Path:
        given = self._settings.key_file
        path = given or self._home.key_file(self._settings.namespace)
        if given is None and not path.exists():
            Keyring.create(path, self._settings.namespace)
        ring = Keyring.load(path)
        if ring.namespace != self._settings.namespace:
            raise SupervisorError(
                f"the key file {path} belongs to the namespace {ring.namespace!r}, not to "
                f"{self._settings.namespace!r}; name another one with PELTON_KEY_FILE"
            )
        return path

    def _choose_port(self) -> int:
        if self._settings.port is not None:
            return self._settings.port
        for port in (states.last_port(self._home), USUAL_PORT):
            if port and process.port_is_free(port):
                return port
        return process.free_port()

    def _start_broker(self, port: int) -> None:
        began = time.monotonic()
        self._broker = EmbeddedKafka(
            self._home.broker,
            port=port,
            progress=self._tell,
            config={"offsets.retention.minutes": str(_OFFSETS_RETENTION_MINUTES)},
            sasl_port=self._sasl_port,
            java_flags=self._settings.java_flags.split(),
        )
        self._broker.start()
        self._note_pids()
        self._tell(f"Apache Kafka at {self._broker.bootstrap_servers} ({time.monotonic() - began:.1f} s)")

    def _provide_login(self) -> None:
        admin = Admin(self._connection())
        try:
            username = provide_login(SecretStore(self._home), admin, self._sasl_port)
        finally:
            admin.close()
        self._tell(
            f"logins ({MECHANISM}) at {process.LOOPBACK}:{self._sasl_port}; that of {username} is in the "
            f"secrets {BROKERS}, {USERNAME} and {PASSWORD}"
        )

    def _reach(self) -> None:
        config = self._connection()
        admin = Admin(config)
        try:
            brokers = admin.brokers(_REACH_S)
        finally:
            admin.close()
        self._tell(f"Apache Kafka at {config.bootstrap_servers} ({len(brokers)} brokers)")

    def _start_deployer(self) -> None:
        home, settings = self._home, self._settings
        told = DeployerSettings(
            home,
            self._connection(),
            settings.env,
            settings.keep_warm_ms,
            settings.drain_ms,
            settings.log_level,
            settings.over,
            settings.cool_down_ms,
        )
        write_json(home.deployer_config, told.to_json())
        log = home.logs / "deployer.log"
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_name("deployer.log.1"))
        with log.open("ab") as output:
            self._deployer = process.spawn(
                [sys.executable, "-m", "pelton_platform.deploy", "--settings", str(home.deployer_config)],
                stdout=output,
                stderr=subprocess.STDOUT,
                die_with_parent=True,
            )
        self._note_pids()

    def _await_deployer(self, began: float) -> None:
        deadline = time.monotonic() + _DEPLOYER_READY_S
        while True:
            if self._deployer is None or self._deployer.poll() is not None:
                raise SupervisorError(f"the deployer does not start{self._last_words()}")
            data = read_json(self._home.deployer_file)
            if data is not None and data.get("pid") == self._deployer.pid:
                return
            if time.monotonic() >= deadline:
                raise SupervisorError(
                    f"the deployer is not ready after {time.monotonic() - began:.0f} s{self._last_words()}"
                )
            time.sleep(0.01)

    def _last_words(self) -> str:
        log = self._home.logs / "deployer.log"
        try:
            lines = log.read_text(errors="replace").splitlines()[-3:]
        except OSError:
            lines = []
        return "".join(f"\n  {line}" for line in lines) + f"\n  (more in {log})"

    def _write_context(self) -> None:
        config = self._connection()
        write_json(
            self._home.context_file,
            {
                "namespace": config.namespace,
                "bootstrap_servers": config.bootstrap_servers,
                "security": dict(config.security),
                "key_file": str(config.key_file),
                "home": str(self._home.root),
                "store": config.store,
                "store_options": dict(config.store_options),
                "gateway": "" if self._doorman is None else self._doorman.address,
                "pid": os.getpid(),
            },
        )

    # --- watch ---

    def watch(self) -> None:
        """Keep everything running until asked to stop."""
        shown: dict[str, Any] = {}
        while not self._stop.wait(_LOOK_S):
            self._keep_broker()
            self._keep_deployer()
            self._keep_cron()
            self._keep_gateway()
            shown = self._show(shown)

    def _keep_broker(self) -> None:
        broker = self._broker
        if broker is None or broker.is_running() or not self._is_due("Apache Kafka"):
            return
        try:
            broker.start()
            self._note_pids()
            self._tell(f"Apache Kafka runs again at {broker.bootstrap_servers}")
        except Exception as error:
            # Whatever it is, the platform goes on trying: callers see that Kafka is away.
            self._tell(f"Apache Kafka does not start: {str(error).splitlines()[0]}")

    def _keep_deployer(self) -> None:
        if self._deployer is not None and self._deployer.poll() is None:
            return
        if self._is_due("the deployer"):
            self._start_deployer()
            self._tell("the deployer was started again")

    def _keep_cron(self) -> None:
        # Begun only now: nothing is due in the first moments, and the first call has the machine for itself.
        if not self._cron.runs and (not self._cron.began or self._is_due("the cron service")):
            self._cron.start(self._home.deployer_config, self._home.logs / "cron.log")
            self._note_pids()

    def _keep_gateway(self) -> None:
        doorman = self._doorman
        if doorman is None or not doorman.someone_knocks():
            return
        if doorman.ended and not self._is_due("the gateway"):
            return
        doorman.start(self._home.root, self._home.logs / "gateway.log", self._settings.log_level)
        self._note_pids()

    def _is_due(self, what: str) -> bool:
        """Whether something that has ended may be started now; says once that it ended."""
        now = time.monotonic()
        if what not in self._due:
            count, last = self._restarts.get(what, (0, 0.0))
            count = 1 if now - last > _HEALTHY_S else count + 1
            self._restarts[what] = (count, now)
            pause = 0.0 if count == 1 else min(_RESTART_MAX_S, _RESTART_FIRST_S * 2 ** (count - 2))
            self._due[what] = now + pause
            self._tell(f"{what} has ended" + (f"; starting it again in {pause:g} s" if pause else ""))
        if now < self._due[what]:
            return False
        del self._due[what]
        return True

    def _show(self, shown: dict[str, Any]) -> dict[str, Any]:
        """Tell what became of containers since the last look."""
        try:
            data = read_json(self._home.deployer_file)
        except HomeError as error:
            self._tell(str(error))
            return shown
        now: dict[str, Any] = (data or {}).get("containers", {})
        for line in describe_changes(shown, now):
            self._tell(line)
        return now

    # --- stop ---

    def shut_down(self) -> None:
        """Stop instances, deployer and broker, in this order, and remove the files that lead to them."""
        if self._state is None:
            return
        self._note(states.STOPPING)
        with contextlib.suppress(FileNotFoundError):
            self._home.context_file.unlink()
        if self._doorman is not None:
            self._doorman.close()
        if self._deployer is not None:
            self._stop_deployer(self._deployer)
        self._cron.stop()
        left = process.processes_with_environment(HOME_VARIABLE, str(self._home.root))
        broker = self._broker.identity if self._broker is not None and self._broker.is_running() else None
        states.end_orphans([states.Orphan(one, "") for one in left if one != broker], 2.0)
        if self._broker is not None:
            self._broker.stop()
        states.forget_state(self._home)
        self._state = None

    def _stop_deployer(self, deployer: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._settings.drain_ms / 1000 + _STOP_MARGIN_S
        sent = 0
        while deployer.poll() is None and time.monotonic() < deadline:
            if sent < 1 + self._at_once.is_set():
                sent += 1
                deployer.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        process.terminate_child(deployer, 0.0)

    # --- state ---

    def _connection(self) -> ConnectionConfig:
        if self._config is None:
            raise RuntimeError("the supervisor was not started")
        return self._config

    def _note(self, phase: str) -> None:
        if self._state is not None:
            self._state = replace(self._state, phase=phase)
            self._note_pids()

    def _note_pids(self) -> None:
        if self._state is None:
            return
        running = self._broker is not None and self._broker.is_running()
        self._state = replace(
            self._state,
            broker_pid=self._broker.pid if running and self._broker is not None else 0,
            deployer_pid=self._deployer.pid if self._deployer is not None else 0,
            cron_pid=self._cron.pid,
            gateway_pid=self._doorman.pid if self._doorman is not None else 0,
        )
        states.write_state(self._home, self._state)
