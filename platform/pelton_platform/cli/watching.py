"""What `pelton ps --watch` shows: containers as they are scaled, again and again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from pelton_platform.cli.console import age, print_json, print_table

if TYPE_CHECKING:
    from pelton_platform.deploy.home import Home

EVERY_S = 1.0
COLUMNS = (
    "CONTAINER",
    "STATUS",
    "INSTANCES",
    "RUNNING",
    "WAITING",
    "OLDEST",
    "CALLS/S",
    "CALL",
    "CPU",
    "MEMORY",
    "DECISION",
)


def watch(home: Home, as_json: bool, every_s: float = EVERY_S) -> NoReturn:
    """Show all containers every second until Ctrl-C; with JSON a line each time."""
    import sys

    from pelton_platform.deploy.home import read_json

    clears = sys.stdout.isatty() and not as_json
    while True:
        data = read_json(home.deployer_file) or {}
        rows = rows_of(data)
        if as_json:
            print_json({"at": round(time.time(), 3), "containers": rows})
        else:
            if clears:
                # To the upper left corner, and nothing below it.
                sys.stdout.write("\x1b[H\x1b[J")
            print_table(COLUMNS, map(_cells, rows), empty="no container is deployed")
        sys.stdout.flush()
        time.sleep(every_s)


def rows_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each container of a deployer's state file."""
    rows = []
    for name, state in sorted(data.get("containers", {}).items()):
        scaling = data.get("scaling", {}).get(name, {})
        instances = state["instances"]
        rows.append(
            {
                "container": name,
                "status": state["status"],
                "ready": sum(one["state"] == "ready" for one in instances),
                "wanted": state["wanted"],
                "running": scaling.get("running", 0),
                "slots": scaling.get("slots", 0),
                "waiting": scaling.get("waiting", 0),
                "oldest_ms": scaling.get("oldest_ms", 0),
                "arriving": scaling.get("arriving", 0.0),
                "service_ms": scaling.get("service_ms"),
                "cpu": round(sum(one["cpu"] for one in instances), 2),
                "memory": sum(one["memory"] for one in instances),
                "reason": state["reason"],
                "decision": scaling.get("reason", ""),
            }
        )
    return rows


def _cells(row: Mapping[str, Any]) -> tuple[object, ...]:
    service = row["service_ms"]
    return (
        row["container"],
        row["status"],
        f"{row['ready']}/{row['wanted']}",
        f"{row['running']}/{row['slots']}" if row["slots"] else "",
        row["waiting"],
        age(row["oldest_ms"]) if row["oldest_ms"] else "",
        f"{row['arriving']:.3g}" if row["slots"] else "",
        "" if service is None else f"{service:.3g} ms",
        f"{row['cpu']:.2f}",
        f"{row['memory'] / 2**20:.0f} MiB",
        "; ".join(filter(None, (row["reason"], row["decision"]))),
    )
