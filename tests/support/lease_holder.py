"""A program that holds leases as an instance does, and writes down when its attempts ran."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

from pelton.protocol.topics import Control, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.probe import Probe
from pelton.transport.kafka.producer import RecordProducer
from pelton_platform.boottime import boot_ms
from pelton_platform.coordinator.leases import Leases


def main(path: str) -> None:
    """Runs attempts under one limit on some threads until SIGTERM; the settings lie in a file."""
    settings = json.loads(Path(path).read_text())
    config = ConnectionConfig(settings["servers"], settings["namespace"])
    clock = BrokerClock()
    journal = os.open(settings["journal"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    producer = RecordProducer(config, message_timeout_ms=4_000, clock=clock)
    leases = Leases(config, settings["instance"], producer)
    key, workers = settings["key"], settings["workers"]
    leases.declare(key, settings["limit"], 1, settings["interval_us"])
    stopping, changed = threading.Event(), threading.Condition()

    def came() -> None:
        with changed:
            changed.notify_all()

    def lost(keys: list[str]) -> None:
        os.write(journal, f"lost {boot_ms()} 0\n".encode())

    leases.listen(came, lost)
    leases.start()
    waiting: set[int] = set()

    def work(number: int) -> None:
        dice = random.Random(number)
        while not stopping.is_set():
            if not leases.use(key):
                with changed:
                    waiting.add(number)
                    leases.want(key, "f", len(waiting))
                    changed.wait(0.05)
                continue
            with changed:
                waiting.discard(number)
                leases.want(key, "f", len(waiting))
            os.write(journal, f"start {boot_ms()} {number}\n".encode())
            time.sleep(dice.uniform(*settings["lasts_s"]))
            os.write(journal, f"end {boot_ms()} {number}\n".encode())
            leases.done(key)

    def begin() -> None:
        """Uses every token there is, and always wants some more."""
        Probe(producer, Topics(config.namespace).control(Control.LOGS)).wait(config.bootstrap_servers)
        begun = 0
        while not stopping.is_set():
            leases.want(key, "f", workers)
            if leases.token(key, clock.now_ms()):
                os.write(journal, f"start {boot_ms()} {begun}\n".encode())
                begun += 1
            else:
                with changed:
                    changed.wait(0.005)

    run = begin if settings["interval_us"] else work
    count = 1 if settings["interval_us"] else workers
    threads = [threading.Thread(target=run, args=(number,)[: run is work]) for number in range(count)]
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leases.close(5.0)
    producer.close(5.0)


if __name__ == "__main__":
    main(sys.argv[1])
