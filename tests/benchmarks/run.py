"""Measures Pelton beside the raw client, in one run on one broker; writes bench/latest.json."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pelton
from benchmarks import measures
from benchmarks.platform_home import PlatformHome
from benchmarks.raw import percentile, raw_loop

HERE = Path(__file__).resolve().parent
OUT = Path("bench")
IN_FLIGHT = (1, 8, 64, 512)
SIZES = {"0.2kib": 200, "4kib": 4096, "64kib": 65536}
PAYLOADS = {
    "64kib": (1 << 16, 2_000),
    "512kib": (500_000, 400),
    "1mib": (1 << 20, 200),
    "8mib": (1 << 23, 60),
    "64mib": (1 << 26, 8),
}
"""Bytes of an argument that comes back as the value, and how many calls of it."""
KEYS = 500
BUSY_PINGPONG_MS, BUSY_LOOP_PER_S = 0.8 / 0.6, 70_000 * 0.6

BARS = {
    "ratio.call_p50": ("<=", 2.2, 1.5),
    "ratio.call_per_s": (">=", 0.15, 0.30),
    "ratio.first_chunk": ("<=", 1.3, 1.05),
    "stream.chunks_per_s": (">=", 10_000, 40_000),
    "backlog.coordinator_mb": ("<=", 200, 120),
    "up.first_call_s": ("<=", 8, 4),
    "takeover.p99_s": ("<=", 10, 7),
    "import.ms": ("<=", 100, 50),
}
"""Figure: how to compare, bar, goal."""


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def measure_raw(figures: dict[str, float], servers: str, scale: float) -> None:
    """The ceiling, on the same broker, once that is warm: a young Java makes the ceiling low."""
    with raw_loop(servers) as loop:
        loop.closed_loop(int(60_000 * scale), 512)
        figures["raw.pingpong_p50_ms"] = median(loop.sequential(int(1500 * scale)))
        for in_flight in (64, 512):
            rate = loop.closed_loop(int(60_000 * scale), in_flight)
            figures[f"raw.closed_loop_{in_flight}_per_s"] = rate


def measure_calls(figures: dict[str, float], home: PlatformHome, scale: float) -> None:
    """Calls one after the other, many at once, big ones, and without anybody waiting."""
    value = "x" * 200
    taken = measures.sequential("bench-echo", int(1500 * scale), value)
    for percent in (50, 95, 99):
        figures[f"call.p{percent}_ms"] = percentile(taken, percent)
    figures["acall.p50_ms"] = median(measures.sequential("bench-aecho", int(500 * scale), value))
    figures["call.nested_p50_ms"] = median(measures.nested(int(500 * scale), value))
    for in_flight in IN_FLIGHT:
        calls = int(min(30_000, 4_000 * in_flight) * scale)
        figures[f"call.per_s_{in_flight}"] = measures.closed_loop("bench-echo", calls, in_flight, value)
    figures["call.per_s"] = figures["call.per_s_512"]
    figures["acall.per_s_512"] = measures.closed_loop("bench-aecho", int(30_000 * scale), 512, value)
    for name, size in SIZES.items():
        calls = int((20_000 if size < 60_000 else 2_000) * scale)
        figures[f"call.per_s_{name}"] = measures.closed_loop("bench-echo", calls, 64, "x" * size)
    home.wait_for_instances("bench-two", 2)
    figures["call.per_s_two_instances"] = measures.closed_loop(
        "bench-echo-two", int(30_000 * scale), 512, value
    )
    figures["call.keyed_per_s"] = measures.closed_loop(
        "bench-keyed", int(20_000 * scale), 512, value, keys=KEYS
    )
    figures["call.one_key_per_s"] = measures.closed_loop("bench-keyed", int(1_000 * scale), 64, value, keys=1)
    # Below the burst of the retry budget, so that nothing is spaced.
    figures["call.retried_per_s"] = measures.closed_loop("bench-flaky", 900, 64, value)
    figures["call.drain_per_s"] = measures.drain("bench-echo", int(30_000 * scale), value, home.unfinished)


def measure_payloads(figures: dict[str, float], scale: float) -> None:
    """Bytes that go in and come back, four calls at a time: in records up to 512 KiB, above it in objects."""
    for name, (size, calls) in PAYLOADS.items():
        count = max(4, int(calls * scale))
        rate = measures.closed_loop("bench-echo", count, 4, bytes(size))
        figures[f"payload.mib_per_s_{name}"] = 2 * rate * size / (1 << 20)


def measure_streams(figures: dict[str, float], scale: float) -> None:
    """First chunk and rate."""
    figures["stream.first_chunk_p50_ms"] = median(measures.first_chunks(int(500 * scale)))
    figures["stream.chunks_per_s"] = measures.chunk_rate(int(200_000 * scale))


def ratios(figures: dict[str, float]) -> None:
    """What holds on any machine."""
    figures["ratio.call_p50"] = figures["call.p50_ms"] / figures["raw.pingpong_p50_ms"]
    figures["ratio.call_per_s"] = figures["call.per_s"] / figures["raw.closed_loop_512_per_s"]
    figures["ratio.nested_p50"] = figures["call.nested_p50_ms"] / figures["call.p50_ms"]
    figures["ratio.keyed_per_s"] = figures["call.keyed_per_s"] / figures["call.per_s"]
    figures["ratio.first_chunk"] = figures["stream.first_chunk_p50_ms"] / figures["call.p50_ms"]


def met(figure: float, sign: str, limit: float) -> bool:
    """Whether a figure keeps a limit."""
    return figure <= limit if sign == "<=" else figure >= limit


def report(figures: dict[str, float]) -> None:
    """Prints figures against bars and goals, ratios first, and writes the file."""
    busy = (
        figures["raw.pingpong_p50_ms"] > BUSY_PINGPONG_MS
        or figures["raw.closed_loop_512_per_s"] < BUSY_LOOP_PER_S
    )
    if busy:
        print("busy machine: the raw client itself is under 60 % of what it does on a quiet one")
    for name in sorted(figures, key=lambda name: (not name.startswith("ratio."), name)):
        line = f"{name:30s} {figures[name]:14.3f}"
        if name in BARS:
            sign, bar, goal = BARS[name]
            verdict = "goal" if met(figures[name], sign, goal) else "bar"
            if not met(figures[name], sign, bar):
                verdict = "MISSED"
            line += f"   {verdict:7s} (bar {sign} {bar:g}, goal {sign} {goal:g})"
        print(line)
    OUT.mkdir(exist_ok=True)
    (OUT / "latest.json").write_text(json.dumps({**figures, "busy_machine": busy}, indent=2) + "\n")
    plot(figures)
    print(f"written: {OUT / 'latest.json'}, {OUT / 'latest.png'}")


def plot(figures: dict[str, float]) -> None:
    """Calls per second by calls in flight, beside the ceiling."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(IN_FLIGHT, [figures[f"call.per_s_{n}"] for n in IN_FLIGHT], marker="o", label="Pelton")
    ceiling = [figures["raw.closed_loop_64_per_s"], figures["raw.closed_loop_512_per_s"]]
    axes.plot([64, 512], ceiling, marker="s", label="raw client, two hops")
    axes.set(xscale="log", yscale="log", xlabel="calls in flight", ylabel="calls with results per second")
    axes.legend()
    figure.tight_layout()
    figure.savefig(OUT / "latest.png", dpi=120)


def main() -> int:
    """Runs everything, or the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the usual number of calls")
    parser.add_argument("--waiting", type=int, default=1_000_000, help="calls that wait in the backlog")
    parser.add_argument("--kills", type=int, default=4, help="instances killed to measure the takeover")
    arguments = parser.parse_args()
    scale = arguments.scale
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="pelton-bench-", ignore_cleanup_errors=True) as folder:
        say("measuring: import, first call")
        figures["import.ms"] = measures.import_ms()
        figures["up.first_call_s"] = measures.first_call_s(Path(folder) / "first")
        home = PlatformHome(Path(folder) / "all")
        try:
            say("starting the platform")
            home.run("up", "--detach")
            home.run("deploy", str(HERE / "functions.py"))
            home.run("call", "bench-echo", '"warm"')
            steps: list[tuple[str, Callable[[], None]]] = [
                ("raw client", lambda: measure_raw(figures, home.bootstrap_servers(), scale)),
                ("calls", lambda: measure_calls(figures, home, scale)),
                ("payloads", lambda: measure_payloads(figures, scale)),
                ("streams", lambda: measure_streams(figures, scale)),
            ]
            for name, step in steps:
                say(f"measuring: {name}")
                step()
            say("measuring: takeover")
            pelton.close()
            taken = measures.takeover(home, arguments.kills)
            figures["takeover.p50_s"], figures["takeover.p99_s"] = median(taken), percentile(taken, 99)
            say(f"measuring: {arguments.waiting} waiting calls")
            home.wait_for_instances("bench-backlog", 1)
            figures["backlog.coordinator_mb"] = measures.backlog_memory(home, arguments.waiting)
            say(f"measuring: {arguments.waiting} timers")
            figures["timers.cron_mb"] = measures.timers_memory(home, arguments.waiting)
            ratios(figures)
            report(figures)
        finally:
            pelton.close()
            home.run("down", "--purge")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
