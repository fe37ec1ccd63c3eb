"""The ticket pipeline from an empty folder to a checked summary, with two kills on the way."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent))

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from faults import Kill, kill_executor, kill_instance
from ledger import Database, Ledger, commits_and_ends, ended_calls
from platform_run import DemoFailed, Platform
from source import Ticket, make_tickets

TICKETS = Path(__file__).resolve().parent.parent / "tickets"
TOPIC, PARTITIONS, GROUP, FUNCTION = "support-tickets", 6, "ticket-consumer", "classify-ticket"


def say(text: str) -> None:
    """One line of the demo's own."""
    print(f"\033[1m▸ {text}\033[0m" if sys.stdout.isatty() else f"> {text}", flush=True)


def create_topic(bootstrap_servers: str) -> None:
    """Makes the topic of the tickets."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result(15)


def produce(bootstrap_servers: str, tickets: list[Ticket]) -> dict[str, float]:
    """Sends the tickets; returns when each acknowledged one was sent."""
    producer = Producer({"bootstrap.servers": bootstrap_servers, "acks": "all", "enable.idempotence": True})
    produced: dict[str, float] = {}
    failed: list[str] = []
    for ticket in tickets:
        at = time.time()

        def report(error: object, _message: object, ticket: Ticket = ticket, at: float = at) -> None:
            if error is None:
                produced[ticket.id] = at
            else:
                failed.append(f"{ticket.id}: {error}")

        body = json.dumps({"id": ticket.id, "text": ticket.text}).encode()
        producer.produce(TOPIC, body, key=ticket.id.encode(), on_delivery=report)
        producer.poll(0)
    if producer.flush(30) or failed:
        raise DemoFailed(f"tickets could not be produced: {failed[:3]}")
    return produced


def watch(ledger: Ledger, until_count: int, produced: dict[str, float], deadline: float) -> None:
    """Shows progress until so many tickets have a label."""
    shown = 0.0
    while (done := ledger.labelled()) < until_count:
        if time.monotonic() > deadline:
            raise DemoFailed(f"only {done} of {until_count} tickets were classified in time")
        if time.monotonic() - shown > 1:
            shown = time.monotonic()
            print(f"  {done:5d} classified of {len(produced)} produced", flush=True)
        time.sleep(0.05)
    print(f"  {done:5d} classified of {len(produced)} produced", flush=True)


def wait_for_commits(bootstrap_servers: str, deadline: float) -> list[tuple[int, int, int]]:
    """Waits until the consumer has committed everything; returns (partition, committed, end)."""
    while True:
        rows = commits_and_ends(bootstrap_servers, GROUP, TOPIC)
        if all(committed == end for _, committed, end in rows) or time.monotonic() > deadline:
            return rows
        time.sleep(0.2)


def summarise(
    tickets: list[Ticket],
    produced: dict[str, float],
    ledger: Ledger,
    outcomes: dict[str, str],
    commits: list[tuple[int, int, int]],
    kills: list[Kill],
) -> list[str]:
    """Prints the summary; returns what was not as promised."""
    labels, executions, calls = ledger.labels(), ledger.executions(), ledger.calls()
    answered = {calls[call] for call, how in outcomes.items() if how == "ok" and call in calls}
    lost = sorted(set(produced) - (set(labels) & answered))
    open_calls = sorted(set(calls) - set(outcomes))
    again = sum(executions.values()) - len(executions)
    right = sum(labels[ticket.id][0] == ticket.category for ticket in tickets if ticket.id in labels)
    accuracy = right / max(1, len(labels))
    took = sorted(labels[ticket][1] - at for ticket, at in produced.items() if ticket in labels)
    cuts = statistics.quantiles(took, n=100) if len(took) > 1 else [0.0] * 99
    behind = [row for row in commits if row[1] != row[2]]
    print(f"""
  produced            {len(produced)}
  classified          {len(labels)}
  lost                {len(lost)}
  executed again      {again}
  calls without end   {len(open_calls)}
  accuracy            {accuracy:.3f}
  end to end          p50 {cuts[49]:.2f} s, p95 {cuts[94]:.2f} s, p99 {cuts[98]:.2f} s""")
    for kill in kills:
        print(f"  killed              {kill.what} {kill.pid} with {kill.in_flight} calls in flight")
    for partition, committed, end in commits:
        print(f"  partition {partition}         committed {committed}, end {end}")
    problems = []
    if len(produced) != len(tickets):
        problems.append(f"only {len(produced)} of {len(tickets)} tickets were produced")
    if lost:
        problems.append(f"{len(lost)} tickets were lost, e.g. {lost[:5]}")
    if open_calls:
        problems.append(f"{len(open_calls)} calls never ended, e.g. {open_calls[:3]}")
    if kills and not again:
        problems.append("nothing was executed again: the kills proved nothing")
    if accuracy < 0.8:
        problems.append(f"accuracy {accuracy:.3f} is below 0.8")
    if behind:
        problems.append(f"committed is not the end offset in partitions {[row[0] for row in behind]}")
    return problems


def pipeline(platform: Platform, tickets: list[Ticket], *, kill: bool, limit_s: float) -> list[str]:
    """Deploys, produces, kills, checks; returns what was not as promised."""
    servers = platform.context()["bootstrap_servers"]
    say(f"create topic {TOPIC} with {PARTITIONS} partitions")
    create_topic(servers)
    say("deploy worker.py and deploy_consumer.py")
    print(platform.run("deploy", str(TICKETS / "worker.py")), end="")
    print(platform.run("deploy", str(TICKETS / "deploy_consumer.py")), end="")
    environment = platform.environment
    ledger = Ledger(Database(environment.get("DATABASE_URL"), environment["TICKETS_DATABASE"]))
    deadline = time.monotonic() + limit_s
    say(f"produce {len(tickets)} tickets" + (", and kill on the way" if kill else ""))
    produced = produce(servers, tickets)
    kills: list[Kill] = []
    for number, strike in enumerate([kill_executor, kill_instance] if kill else []):
        watch(ledger, len(tickets) * (1 + 3 * number) // 10, produced, deadline)
        done = strike(platform, ledger)
        kills.append(done)
        say(f"killed {done.what} {done.pid} with SIGKILL: {done.in_flight} calls were in flight in it")
    watch(ledger, len(tickets), produced, deadline)
    commits = wait_for_commits(servers, deadline)
    namespace = platform.context()["namespace"]
    outcomes = ended_calls(servers, f"{namespace}.fn.{FUNCTION}.results")
    return summarise(tickets, produced, ledger, outcomes, commits, kills)


def main() -> int:
    """Runs the demo; 0 only if everything it promises is true."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tickets", type=int, default=3000, help="how many tickets (default 3000)")
    parser.add_argument("--no-kills", action="store_true", help="leave the workers alone")
    parser.add_argument("--limit", type=float, default=170.0, help="seconds before it gives up (default 170)")
    arguments = parser.parse_args()

    def interrupted(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    began = time.monotonic()
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pelton-demo-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        # Large batches keep all slots of the workers taken, so that kills hit calls in flight.
        environment = {"TICKETS_DATABASE": str(Path(folder) / "tickets.sqlite3"), "TICKETS_BATCH": "100"}
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        platform = Platform(home, environment)
        try:
            say("start the platform with its embedded Apache Kafka")
            print(platform.run("up", "--detach", "--sasl"), end="")
            problems = pipeline(
                platform,
                make_tickets(arguments.tickets),
                kill=not arguments.no_kills,
                limit_s=arguments.limit,
            )
        except (DemoFailed, TimeoutError) as failed:
            problems = [str(failed)]
        finally:
            platform.disconnect()
            if problems:
                print(platform.last_words(), file=sys.stderr)
            say("stop the platform")
            try:
                print(platform.run("down", "--purge"), end="")
            except DemoFailed as failed:
                problems.append(str(failed))
            left = platform.left_behind()
            if left:
                problems.append(f"processes were left behind: {left}")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    print(f"\n{'failed' if problems else 'all true'} after {time.monotonic() - began:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
