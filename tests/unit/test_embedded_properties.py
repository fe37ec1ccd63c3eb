"""What the embedded Apache Kafka is made of and set to: pinned list, broker's settings, Java's flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from pelton_platform.embedded import EmbeddedKafka, EmbeddedKafkaError, Installation
from pelton_platform.embedded.artifacts import KAFKA_VERSION, list_digest, parse, pinned
from pelton_platform.embedded.jvm import archive_flags, java_command
from pelton_platform.embedded.properties import RESERVED, broker_properties, render

SUM = "0" * 64


def properties(**overrides: str) -> dict[str, str]:
    """Settings of a broker with overrides, dots written as underscores."""
    return broker_properties(
        host="127.0.0.1",
        port=1,
        controller_port=2,
        overrides={key.replace("_", "."): value for key, value in overrides.items()},
    )


def test_embedded_artifacts_are_complete() -> None:
    """The list names the broker, its clients and a log binding, each file once, with a sum of its own."""
    names = {artifact.name: artifact for artifact in pinned()}
    assert names["kafka_2.13"].version == names["kafka-clients"].version == KAFKA_VERSION
    assert "slf4j-simple" in names
    assert len({artifact.sha256 for artifact in pinned()}) == len(pinned()) == len(names)
    assert all(artifact.size > 1000 for artifact in pinned())


def test_embedded_artifacts_name_their_cache_folder() -> None:
    """Another sum, version or order is another folder; the same list is the same one."""
    assert list_digest(pinned()) == list_digest(parse("\n".join(_lines())))
    assert list_digest(pinned()) != list_digest(pinned()[1:])
    assert list_digest(pinned()) != list_digest(reversed(pinned()))


def _lines() -> list[str]:
    return [f"{a.sha256} {a.size} {a.coordinate}" for a in pinned()]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment",
        f"{SUM} 1 group:name",
        f"{SUM} one group:name:1",
        f"{SUM[1:]} 1 group:name:1",
        f"{SUM[2:]} 1 group:name:1",
        f"{SUM} 1 group:name:1\n{SUM} 1 other:name:1",
    ],
)
def test_embedded_artifacts_damaged_list_is_refused(text: str) -> None:
    """A list that is empty, malformed or names a file twice is never used in part."""
    with pytest.raises(EmbeddedKafkaError, match="install pelton again"):
        parse(text)


def test_embedded_properties_are_for_one_broker_on_loopback() -> None:
    """Every listener is on the given host, and everything replicated has one replica."""
    found = properties()
    assert found["listeners"] == "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2"
    assert found["process.roles"] == "broker,controller"
    assert {value for key, value in found.items() if "replication.factor" in key} == {"1"}
    assert found["auto.create.topics.enable"] == "false"
    assert found["group.initial.rebalance.delay.ms"] == "0"
    assert int(found["group.min.session.timeout.ms"]) <= 6000


def test_embedded_properties_bound_the_disk_without_dropping_what_waits() -> None:
    """Disk comes back in small segments, and no limit on bytes deletes records that are kept by time."""
    found = properties()
    sizes = {key: int(value) for key, value in found.items() if key.endswith("segment.bytes")}
    assert max(sizes.values()) <= 64 * 1024 * 1024
    assert not {"log.retention.bytes", "log.local.retention.bytes"} & found.keys()


def test_embedded_properties_given_win_but_for_reserved_ones() -> None:
    """The caller's value replaces a default; what the start rests on is refused by name."""
    assert properties(log_segment_bytes="1048576")["log.segment.bytes"] == "1048576"
    assert properties(num_partitions="3")["num.partitions"] == "3"
    for name in RESERVED:
        with pytest.raises(EmbeddedKafkaError, match=name):
            properties(**{name.replace(".", "_"): "x"})


def test_embedded_properties_file_keeps_any_text() -> None:
    """Blanks, separators, backslashes and letters beyond ASCII are written so that Java reads them back."""
    assert render({"b": "x", "a": "1"}) == "a=1\nb=x\n"
    assert render({"a b": "C:\\x =#!"}) == "a\\ b=C\\:\\\\x\\ \\=\\#\\!\n"
    assert render({"k": "é\n\U0001f600"}) == "k=\\u00e9\\u000a\\ud83d\\ude00\n"


def test_embedded_java_starts_with_its_archive_only_if_there_is_one(tmp_path: Path) -> None:
    """Heap, class path and temporary folder are as told, and a missing archive is not asked for."""
    installation = Installation(tmp_path, Path("java"), (Path("a.jar"), Path("b.jar")), tmp_path / "x.aot")
    command = java_command(installation, "Main", ["f"], temporary=Path("t"), heap="1g", flags=("-XX:X",))
    assert command[0] == "java"
    assert command[-5:] == ["-XX:X", "-cp", "a.jar:b.jar", "Main", "f"]
    assert {"-Xmx1g", "-Djava.io.tmpdir=t"} <= set(command)
    assert archive_flags(installation) == ()
    installation.archive.touch()
    assert f"-XX:AOTCache={installation.archive}" in archive_flags(installation)


def test_embedded_kafka_that_was_not_started_says_so() -> None:
    """Address, pid and temporary folder exist from the start on; before, each says what to call."""
    kafka = EmbeddedKafka()
    for name in ("bootstrap_servers", "pid", "data_dir", "log_path"):
        with pytest.raises(EmbeddedKafkaError, match="start"):
            getattr(kafka, name)
    assert not kafka.is_running()
    kafka.stop()
    assert EmbeddedKafka(port=9092).bootstrap_servers == "127.0.0.1:9092"
