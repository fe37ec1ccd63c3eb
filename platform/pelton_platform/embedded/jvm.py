"""How Java is started for the embedded Apache Kafka: flags, logging and the class-data archive."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pelton_platform.embedded.cache import Installation

BROKER_CLASS = "kafka.Kafka"
STORAGE_CLASS = "kafka.tools.StorageTool"
DEFAULT_HEAP = "512m"

# Warnings and errors go to the log, with these loggers' notes of start and stop.
_TALKING_LOGGERS = ("kafka.server.KafkaRaftServer", "org.apache.kafka.common.utils.AppInfoParser")


def java_command(
    installation: Installation,
    main_class: str,
    arguments: Sequence[str],
    *,
    temporary: Path,
    heap: str = DEFAULT_HEAP,
    flags: Sequence[str] = (),
) -> list[str]:
    """Return the command line that runs a class of the installation.

    Args:
        installation: Java and the class path.
        main_class: What to run.
        arguments: Its arguments.
        temporary: Folder for what native libraries unpack; a killed Java leaves it there.
        heap: Largest heap, in Java's words (`512m`, `2g`).
        flags: Further flags of the virtual machine.
    """
    return [
        str(installation.java),
        f"-Xmx{heap}",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        "-Djava.awt.headless=true",
        "-Djava.net.preferIPv4Stack=true",
        f"-Djava.io.tmpdir={temporary}",
        "-Dlog4j2.disable.jmx=true",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
        *(f"-Dorg.slf4j.simpleLogger.log.{name}=info" for name in _TALKING_LOGGERS),
        *flags,
        "-cp",
        installation.class_path,
        main_class,
        *arguments,
    ]


def archive_flags(installation: Installation) -> tuple[str, ...]:
    """Return the flags that make Java read its class-data archive, if there is one that it may use.

    An archive that does not fit after all is passed over by Java without a word: only the start is slower.
    """
    if not os.access(installation.archive, os.R_OK):
        return ()
    return (f"-XX:AOTCache={installation.archive}", "-Xlog:aot*=off", "-Xlog:cds*=off")


def training_flags(target: Path) -> tuple[str, ...]:
    """Return the flags that make Java write a class-data archive when it ends."""
    return (f"-XX:AOTCacheOutput={target}", "-Xlog:aot*=off", "-Xlog:cds*=off")
