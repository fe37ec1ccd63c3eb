"""How the embedded Apache Kafka fails: each error names the way out, and nothing is left behind."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pelton_platform import process
from pelton_platform.embedded import EmbeddedKafka, EmbeddedKafkaError, archive, training
from pelton_platform.embedded.broker import TEMPORARY_PREFIX, sweep_temporary_folders
from pelton_platform.embedded.cache import Installation
from pelton_platform.embedded.jvm import archive_flags
from pelton_platform.embedded.properties import broker_properties
from pelton_platform.embedded.storage import format_storage, is_formatted
from support.embedded_broker import Broker

# Starts a broker with temporary data, says who and where it is, then does as the second argument says.
OWNER_PROGRAM = """
import sys, threading
from pelton_platform.embedded import EmbeddedKafka
kafka = EmbeddedKafka(build_archive=False)
kafka.start()
print(kafka.pid, kafka.data_dir, flush=True)
if sys.argv[1] == "hang":
    threading.Event().wait()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of the test's own, for this process and its children."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def kafka_in(folder: Path, broker: Broker, **options: object) -> EmbeddedKafka:
    """Describe another broker that runs from the same installation."""
    return EmbeddedKafka(folder, installation=broker.installation, build_archive=False, **options)  # type: ignore[arg-type]


def test_embedded_port_in_use_names_the_holder(broker: Broker, tmp_path: Path) -> None:
    """A port that another program has is refused with its pid, and another choice is offered."""
    with socket.create_server((process.LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        kafka = kafka_in(tmp_path, broker, port=port)
        with pytest.raises(
            EmbeddedKafkaError, match=rf"port {port} .* in use.* choose another port="
        ) as caught:
            kafka.start()
        assert str(process.own_identity().pid) in str(caught.value)
    assert not kafka.is_running()


def test_embedded_port_lost_between_check_and_use_is_told(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the broker itself finds its port taken, the error is the same, and it is not left running."""
    with socket.create_server((process.LOOPBACK, 0)) as server:
        port, free = server.getsockname()[1], process.free_port()
        kafka = kafka_in(tmp_path, broker, port=port)
        answers = iter([True])
        monkeypatch.setattr(process, "port_is_free", lambda port, host="": next(answers, False))
        monkeypatch.setattr(process, "free_ports", lambda count: (1, free))
        with pytest.raises(EmbeddedKafkaError, match=rf"port {port} .* in use"):
            kafka.start()
    assert not kafka.is_running()


def test_embedded_no_space_for_records_is_refused(broker: Broker, tmp_path: Path) -> None:
    """Too little disk is refused before anything is written, in megabytes."""
    kafka = kafka_in(tmp_path / "data", broker, space=lambda path: 10_000_000)
    with pytest.raises(EmbeddedKafkaError, match=r"10 MB free, 537 MB wanted; make room, or choose another"):
        kafka.start()
    assert list((tmp_path / "data").iterdir()) == []


def test_embedded_data_folder_of_a_running_broker_is_refused(broker: Broker) -> None:
    """Two brokers never share a data folder; the pid of the first is told and it goes on."""
    kafka = kafka_in(broker.kafka.data_dir, broker)
    with pytest.raises(EmbeddedKafkaError, match=f"pid {broker.kafka.pid} runs on the data folder"):
        kafka.start()
    assert broker.kafka.is_running()
    assert (broker.kafka.data_dir / "owner.json").exists()


def test_embedded_wrong_setting_shows_the_end_of_the_log(broker: Broker, tmp_path: Path) -> None:
    """A setting that the broker refuses is told with its own words and the place of the log."""
    kafka = kafka_in(tmp_path, broker, config={"log.flush.interval.messages": "none"})
    with pytest.raises(EmbeddedKafkaError, match=r"correct the setting in config=") as caught:
        kafka.start()
    assert "log.flush.interval.messages" in str(caught.value)
    assert not kafka.is_running()


def test_embedded_own_settings_cannot_be_replaced(tmp_path: Path, broker: Broker) -> None:
    """Settings that the start rests on are refused by name, with what to use instead."""
    kafka = kafka_in(tmp_path, broker, config={"listeners": "PLAINTEXT://0.0.0.0:9092"})
    with pytest.raises(EmbeddedKafkaError, match=r"config= cannot set listeners.*use port="):
        kafka.start()


def test_embedded_start_that_takes_too_long_shows_the_log(broker: Broker, tmp_path: Path) -> None:
    """A start that is not ready in time ends the broker and says where its log is."""
    kafka = kafka_in(tmp_path, broker)
    with pytest.raises(EmbeddedKafkaError, match=r"did not answer in time.*kafka\.log"):
        kafka.start(timeout=0.01)
    assert not kafka.is_running()


def test_embedded_format_that_was_killed_is_done_again(broker: Broker, tmp_path: Path) -> None:
    """What a killed formatting left behind is not taken for storage, and a full folder is not overwritten."""
    (tmp_path / "records.new").mkdir()
    (tmp_path / "records.new" / "meta.properties").write_text("half")
    properties = broker_properties(host="127.0.0.1", port=1, controller_port=2, overrides={})
    assert not is_formatted(tmp_path)
    format_storage(broker.installation, tmp_path, properties, str)
    assert is_formatted(tmp_path)
    identity = (tmp_path / "records" / "meta.properties").read_text()
    assert "half" not in identity
    assert not (tmp_path / "records.new").exists()
    (tmp_path / "records" / "meta.properties").unlink()
    with pytest.raises(EmbeddedKafkaError, match=r"records is in the way: move it"):
        format_storage(broker.installation, tmp_path, properties, str)


def test_embedded_storage_is_as_the_tool_makes_it(broker: Broker, tmp_path: Path) -> None:
    """Kafka's tool and a copy of what it wrote make the same but for fresh ids; damage is noticed."""
    good, properties = (
        broker.installation,
        broker_properties(host="127.0.0.1", port=1, controller_port=2, overrides={}),
    )
    own = Installation(tmp_path, good.java, good.jars, good.archive)
    made = []
    for name in ("by-tool", "by-copy", "by-tool-again"):
        (tmp_path / name / "tmp").mkdir(parents=True)
        format_storage(own, tmp_path / name, properties, str)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name / "records").iterdir()})
        if name == "by-copy":
            (kept,) = (tmp_path / "storage").iterdir()
            kept.write_bytes(b"damaged")
    facts = [
        sorted(line.split(b"=")[0] for line in folder["meta.properties"].splitlines() if b"=" in line)
        for folder in made
    ]
    assert facts == [[b"cluster.id", b"directory.id", b"node.id", b"version"]] * 3
    assert len({folder["meta.properties"] for folder in made}) == 3
    assert made[0]["bootstrap.checkpoint"] == made[1]["bootstrap.checkpoint"]
    assert made[2]["bootstrap.checkpoint"] != b"damaged"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with a killed parent")
def test_embedded_broker_of_a_killed_owner_ends_and_is_swept(broker: Broker, temporary: Path) -> None:
    """SIGKILL of the owner ends the broker; the next start deletes the temporary folder it left."""
    with subprocess.Popen([sys.executable, "-c", OWNER_PROGRAM, "hang"], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().decode().split()
        identity = process.identify(int(pid))
        assert identity is not None
        sweep_temporary_folders()
        assert Path(folder).exists(), "the folder of a broker whose owner lives stays"
        owner.kill()
        assert process.wait_gone(identity, 10.0)
    assert Path(folder).parent == temporary
    sweep_temporary_folders()
    assert list(temporary.glob(f"{TEMPORARY_PREFIX}*")) == []


def test_embedded_broker_of_an_owner_that_ends_is_stopped(broker: Broker, temporary: Path) -> None:
    """A program that forgets to stop its broker leaves neither process nor folder."""
    done = subprocess.run(
        [sys.executable, "-c", OWNER_PROGRAM, "end"], stdout=subprocess.PIPE, check=True, timeout=60
    )
    pid, folder = done.stdout.decode().split()
    assert process.identify(int(pid)) is None
    assert not Path(folder).exists()


def test_embedded_archive_is_used_when_there_is_one(broker: Broker, tmp_path: Path) -> None:
    """The archive is built from a started broker, and the next broker has it mapped."""
    if not broker.installation.archive.exists():
        training.build(broker.installation)
    assert broker.installation.archive.exists()
    with kafka_in(tmp_path, broker) as kafka:
        assert str(broker.installation.archive) in Path(f"/proc/{kafka.pid}/maps").read_text()


def test_embedded_archive_that_is_damaged_only_slows_the_start(broker: Broker, tmp_path: Path) -> None:
    """Java starts, and says nothing, beside an archive that it cannot use."""
    bad = tmp_path / "bad.aot"
    bad.write_bytes(b"damaged" * 1000)
    good = broker.installation
    installation = Installation(good.folder, good.java, good.jars, bad)
    done = subprocess.run(
        [str(good.java), *archive_flags(installation), "-cp", good.class_path, "-version"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert (done.stdout, b"bad.aot" in done.stderr) == (b"", False)


def test_embedded_archive_build_ends_with_its_broker(broker: Broker, temporary: Path) -> None:
    """A build that is going on when the broker stops is ended, with its own broker and folder."""
    good = broker.installation
    installation = Installation(good.folder, good.java, good.jars, temporary / "archives" / "new.aot")
    builder = archive.build_in_background(installation, die_with_parent=True)
    assert builder is not None
    while not list(temporary.glob(f"{TEMPORARY_PREFIX}*/kafka.log")):
        assert not builder.wait(0.05), (temporary / "archives" / "training.log").read_text()
    builder.stop()
    assert builder.wait(0)
    assert list(temporary.glob(f"{TEMPORARY_PREFIX}*")) == []
    assert process.processes_with_environment("TMPDIR", str(temporary)) == ()


def test_embedded_archive_that_cannot_be_built_is_noted(broker: Broker, temporary: Path) -> None:
    """A failed build leaves its reason, but no zombie, and is not tried at every start."""
    good = broker.installation
    installation = Installation(good.folder, Path("/bin/false"), good.jars, temporary / "new.aot")
    builder = archive.build_in_background(installation, die_with_parent=True)
    assert builder is not None
    deadline = time.monotonic() + 30
    while process.identify(builder.pid) is not None:  # a zombie has an identity, too
        assert time.monotonic() < deadline, "the ended build was not waited for"
        time.sleep(0.01)
    assert "ended with code 1 while starting" in archive.failure_note(installation.archive).read_text()
    assert archive.build_in_background(installation, die_with_parent=True) is None
