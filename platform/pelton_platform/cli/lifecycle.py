"""The commands `pelton up` and `pelton down`."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelton_platform.cli.console import EXIT_ALREADY_RUNNING, Json, print_json, tell
from pelton_platform.cli.variables import parse_pairs

if TYPE_CHECKING:
    from pelton_platform.supervisor.settings import SupervisorSettings
    from pelton_platform.supervisor.state import PlatformState


def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when the platform is ready; it goes on running.")
    ] = False,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Use this Kafka instead of an embedded one: host:port[,host:port].")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the embedded broker on loopback.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Prefix of all topics and groups.")] = None,
    sasl: Annotated[
        bool,
        typer.Option(
            "--sasl",
            help="Take logins at the embedded broker too, and fill the secrets KAFKA_BROKERS, KAFKA_USERNAME "
            "and KAFKA_PASSWORD.",
        ),
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable for every container; repeat it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start the platform: Apache Kafka and the local deployer.

    Ctrl-C stops it. When a platform runs from this home folder already, it is left alone and the exit code
    is 3.
    """
    from pelton_platform.settings import load_settings
    from pelton_platform.supervisor.settings import SupervisorSettings
    from pelton_platform.supervisor.state import AlreadyRunning

    given = load_settings(
        bootstrap_servers=bootstrap_servers, port=port, namespace=namespace, sasl=sasl or None
    )
    settings = replace(SupervisorSettings.of(given), over=parse_pairs(env or []))
    try:
        if detach:
            from pelton_platform.supervisor.detached import start_detached

            _show_ready(start_detached(settings, tell), as_json)
        else:
            _run_here(settings, as_json)
    except AlreadyRunning as error:
        if as_json:
            print_json({**_plain(error.state), "already_running": True})
        tell(str(error))
        raise typer.Exit(EXIT_ALREADY_RUNNING) from None


def _run_here(settings: SupervisorSettings, as_json: bool) -> None:
    from pelton_platform import telemetry
    from pelton_platform.supervisor.supervise import Supervisor

    telemetry.set_up("supervisor", level="ERROR", text=True)
    interrupts = 0
    with Supervisor(settings, tell) as supervisor:

        def leave(*_: object) -> None:
            nonlocal interrupts
            interrupts += 1
            supervisor.ask_to_stop()
            if interrupts == 1:
                tell("stopping; once more stops without waiting for running calls")

        # Until everything runs a signal ends the start where it is; the supervisor cleans up.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)
        try:
            state = supervisor.start()
        except KeyboardInterrupt:
            tell("interrupted; stopping what was started")
            raise
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, leave)
        _show_ready(state, as_json)
        if not as_json:
            tell("Ctrl-C stops it")
        supervisor.watch()
    tell("stopped")


def down(
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Also delete all state: topics, waiting calls, bundles, keys, logs."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Stop the platform, and whatever an earlier one left behind.

    State is kept: after the next `pelton up` what was deployed answers again.
    """
    from pelton_platform.deploy.home import Home
    from pelton_platform.settings import load_settings
    from pelton_platform.supervisor import state as states
    from pelton_platform.supervisor.detached import stop

    settings = load_settings()
    home = Home(settings.home)
    stopped = stop(home, tell, drain_s=settings.drain.total_seconds())
    if not stopped:
        tell(f"no platform runs from {home.root}")
    if purge:
        existed = home.root.exists()
        states.purge(home)
        if existed:
            tell(f"deleted what {home.root} held")
    if as_json:
        print_json({"stopped": stopped, "purged": purge, "home": str(home.root)})


def _show_ready(state: PlatformState, as_json: bool) -> None:
    if as_json:
        print_json(_plain(state))
        return
    tell(f"Pelton {state.version} runs: namespace {state.namespace}, Kafka {state.bootstrap_servers}")
    tell(f"home {state.home}; next: pelton deploy FILE")


def _plain(state: PlatformState) -> dict[str, Any]:
    data = state.to_json()
    return {
        "pid": state.supervisor.pid,
        "context": str(Path(state.home) / "context.json"),
        **{name: value for name, value in data.items() if name != "supervisor"},
    }
