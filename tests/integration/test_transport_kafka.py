"""What the Kafka transport promises beside the contract: forks, failures of the broker, signatures, exits."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient

from pelton.core.call import Invocation, Result, ResultKind, Token, mint_call_id
from pelton.core.spec import ContainerSpec
from pelton.errors import (
    AcceptanceUnknown,
    PlatformNotRunning,
    SignatureError,
    SubmitFailed,
    TransportError,
)
from pelton.protocol.codec import encode_container_spec, encode_function_spec
from pelton.protocol.signing import Key, Keyring
from pelton.protocol.topics import Control, TopicPlan, Topics, spec_key
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.calls import KafkaTransport
from pelton.transport.kafka.directory import KafkaDirectory
from pelton.transport.kafka.outage import Outage
from pelton.transport.kafka.probe import Probe
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.kafka.reader import PartitionReader
from pelton.transport.kafka.settings import producer_settings, reader_settings
from pelton.transport.log import KafkaFailure
from pelton.transport.memory import Delivery
from support.embedded_broker import Broker
from support.transport_platforms import KafkaPlatform, function_spec

pytestmark = pytest.mark.integration

TOKEN = Token(1, 1, 0, 0, 1)


@pytest.fixture(scope="module")
def platform(broker: Broker) -> Iterator[KafkaPlatform]:
    """One namespace for the module."""
    made = KafkaPlatform(broker, "transport")
    yield made
    made.close()


def echo(delivery: Delivery) -> None:
    """A worker that answers with the arguments."""
    items = (delivery.invocation.arguments,)
    delivery.append(Result(delivery.headers.call_id, TOKEN, ResultKind.OUTCOME, items=items))


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for a condition, looking every 10 ms."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.01)


class Calls:
    """Makes calls of one function and collects how they end."""

    def __init__(self, transport: KafkaTransport, function: str) -> None:
        self.transport = transport
        self.spec = function_spec(function)
        self.accepted: list[Exception | None] = []
        self.values: list[bytes] = []

    def invocation(self, arguments: bytes) -> Invocation:
        partition = self.transport.prepare(self.spec.name)
        call_id = mint_call_id(self.transport.now_ms(), partition, os.urandom(8))
        return Invocation(call_id, self.spec.name, arguments)

    def submit(self, arguments: bytes) -> None:
        self.transport.submit(self.invocation(arguments), self.spec, self.accepted.append, self.take)

    def take(self, results: Sequence[Result]) -> None:
        self.values += [result.items[0] for result in results if result.kind is ResultKind.OUTCOME]


def deployed(platform: KafkaPlatform, function: str) -> Calls:
    """A fresh function with an echoing worker, and a client."""
    platform.deploy(function_spec(function))
    platform.serve(function, echo)
    return Calls(KafkaTransport(platform.config), function)


def test_transport_first_record_of_a_new_producer_goes_at_once(platform: KafkaPlatform) -> None:
    """It does not wait half a second for the client's own time to ask for a producer id."""
    taken = []
    for _ in range(5):
        began = time.monotonic()
        producer = RecordProducer(platform.config)
        Probe(producer, platform.topics.control(Control.LOGS)).wait("the broker")
        taken.append(time.monotonic() - began)
        producer.close(flush_s=0)
    assert min(taken) < 0.4


# --- processes ---


def test_transport_forked_child_connects_anew(platform: KafkaPlatform) -> None:
    """A child made by fork calls with the same transport object and exits; the parent's calls go on."""
    calls = deployed(platform, "forks")
    calls.submit(b"before")
    wait_for(lambda: calls.values == [b"before"])
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            calls.submit(b"in the child")
            wait_for(lambda: b"in the child" in calls.values)
            assert calls.transport.directory.function("forks") is not None
            os.write(write_end, b"%d" % calls.transport.close(10))
            code = 0
        finally:
            os._exit(code)
    os.close(write_end)
    calls.submit(b"in the parent")
    wait_for(lambda: calls.values == [b"before", b"in the parent"])
    with os.fdopen(read_end, "rb") as told:
        assert told.read() == b"0"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    calls.transport.close(5)


PROGRAM = """
import os, sys
from pathlib import Path
from pelton.core.call import Invocation, mint_call_id
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.calls import KafkaTransport
from pelton.transport.kafka.probe import Probe
from pelton.transport.kafka.producer import RecordProducer
servers, namespace, function, mode = sys.argv[1:]
transport = KafkaTransport(ConnectionConfig(servers, namespace))
spec = transport.directory.function(function)
partition = transport.prepare(function)
def submit():
    call_id = mint_call_id(transport.now_ms(), partition, os.urandom(8))
    transport.submit(Invocation(call_id, function, b"x"), spec, lambda e: None, lambda r: None)
if mode == "fork" and os.fork() == 0:
    sys.exit(0)
for _ in range(200):
    submit()
if mode == "fork":
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
print("sent")
"""


@pytest.mark.parametrize("mode", ["plain", "fork"])
def test_transport_program_that_just_ends_loses_nothing(platform: KafkaPlatform, mode: str) -> None:
    """A program that sends and ends without closing loses nothing; a child that uses nothing ends as well."""
    function = f"ends-{mode}"
    platform.deploy(function_spec(function))
    arguments = [platform.config.bootstrap_servers, "transport", function, mode]
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "sent\n", "")
    assert len(platform.inputs(function)) == 200


# --- failures ---


FATAL = """
import ctypes, sys, time
from pathlib import Path
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.producer import RecordProducer
servers, topic = sys.argv[1:]
reasons, reports = [], []
producer = RecordProducer(ConnectionConfig(servers, "transport"), on_fatal=reasons.append)
def send(value):
    producer.send(topic, value, on_report=lambda failure, *_: reports.append(failure))
    assert producer.flush(20) == 0
def await_that(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
send(b"1")
# The library has a hook for tests, which is called from a thread that is not its own: nothing else may be
# asked of it meanwhile.
await_that(lambda: producer._hurry <= 0)
broken = producer._client
(path,) = {
    line.split()[-1]
    for line in Path("/proc/self/maps").read_text().splitlines()
    if "librdkafka" in line and ".so" in line
}
handle = ctypes.c_void_p.from_address(id(broken) + object.__basicsize__)
library = ctypes.CDLL(path)
library.rd_kafka_test_fatal_error.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p]
assert library.rd_kafka_test_fatal_error(handle, 45, b"made by a test") == 0
await_that(lambda: producer._client is not broken)
send(b"2")
assert reports == [None, None], reports
assert len(reasons) == 1, reasons
producer.close(1)
print("survived")
"""


def test_transport_fatal_producer_error_is_survived(platform: KafkaPlatform) -> None:
    """After a fatal error of the real client a new one is made, and the next sends go through.

    In a process of its own: the hook that makes the error is the library's, and may end a process.
    """
    plan = TopicPlan("transport.fatal", 1, 1, {})
    platform.admin.create_topics([plan])
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", FATAL, platform.config.bootstrap_servers, plan.name],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (0, "survived\n"), ended.stderr
    assert platform.admin.watermarks([(plan.name, 0)]) == {(plan.name, 0): (0, 2)}


def test_transport_calls_survive_a_killed_broker(new_broker: Callable[..., Broker]) -> None:
    """Calls in flight while the broker is killed and comes back end once each; later calls work."""
    broker = new_broker()
    platform = KafkaPlatform(broker, "bounce")
    try:
        calls = deployed(platform, "bounce")
        calls.submit(b"warm")
        wait_for(lambda: calls.values == [b"warm"])
        sent = [b"%d" % number for number in range(200)]
        for arguments in sent[:100]:
            calls.submit(arguments)
        broker.kill()
        for arguments in sent[100:]:
            calls.submit(arguments)
        broker.restart()
        wait_for(lambda: len(calls.accepted) == 201, 60)
        assert set(calls.accepted) == {None}
        wait_for(lambda: set(calls.values) == {b"warm", *sent}, 60)
        calls.transport.close(5)
    finally:
        platform.close()


def test_transport_outage_is_told_once_by_each_client(
    new_broker: Callable[..., Broker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the broker is away clients hear of it many times; they say it once, and once that it is over."""
    broker = new_broker()
    platform = KafkaPlatform(broker, "outage")
    heard: dict[Outage, int] = {}
    take = Outage.told

    def told(self: Outage, error: KafkaError) -> bool:
        heard[self] = heard.get(self, 0) + 1
        return take(self, error)

    monkeypatch.setattr(Outage, "told", told)
    topic = Topics("outage").control(Control.LOGS)
    reader = PartitionReader(platform.config, lambda batch: None, name="a-reader")
    producer = RecordProducer(platform.config)
    try:
        reader.follow(topic, 0, 0)
        producer.send(topic, b"x", on_report=lambda *_: None)
        assert producer.flush(20) == 0
        with caplog.at_level(logging.WARNING, "pelton.transport"):
            broker.kill()
            own = (reader._outage, producer._outage)
            wait_for(lambda: all(heard.get(one, 0) >= 3 for one in own))
            assert sum("cannot be reached by a-reader" in text for text in caplog.messages) == 1
            broker.restart()
            wait_for(lambda: not any(one.lost for one in own), 60)
        assert sum("a-reader" in text for text in caplog.messages) == 2
        assert sum("reached again by a-reader" in text for text in caplog.messages) == 1
        assert sum("reached again by a producer" in text for text in caplog.messages) >= 1
    finally:
        reader.close()
        producer.close(1)
        platform.close()


def test_transport_frozen_broker_means_backpressure_then_errors_that_say_so(
    new_broker: Callable[..., Broker],
) -> None:
    """Sends to a broker that answers nothing block at the bound, then fail with the reason."""
    broker = new_broker()
    platform = KafkaPlatform(broker, "frozen")
    producer = RecordProducer(platform.config, max_unacked=50, message_timeout_ms=3_000)
    reports: list[KafkaFailure | None] = []

    def report(failure: KafkaFailure | None, *_: int) -> None:
        reports.append(failure)

    try:
        platform.admin.create_topics([TopicPlan("frozen.t", 1, 1, {})])
        producer.send("frozen.t", b"x", on_report=report)
        assert producer.flush(20) == 0
        broker.freeze()
        started = time.monotonic()
        for _ in range(50):
            producer.send("frozen.t", b"x", on_report=report)
        assert time.monotonic() - started < 1
        for _ in range(20):  # these wait for room, which comes only with the failures of the first
            producer.send("frozen.t", b"x", on_report=report)
        assert producer.unacknowledged <= 50
        assert time.monotonic() - started > 1.5
        failures = [failure for failure in reports if failure is not None]
        assert failures
        assert not any(failure.certain for failure in failures)
        broker.thaw()
        assert producer.flush(20) == 0
        producer.send("frozen.t", b"x", on_report=report)
        assert producer.flush(10) == 0
        assert reports[-1] is None
        assert len(reports) == 72
    finally:
        broker.thaw()
        producer.close(1)
        platform.close()


def test_transport_unknown_acceptance_names_the_way_to_find_out(
    new_broker: Callable[..., Broker],
) -> None:
    """A call that a frozen broker does not acknowledge ends as AcceptanceUnknown, which names `attach`."""
    broker = new_broker()
    platform = KafkaPlatform(broker, "unknown")
    try:
        platform.deploy(function_spec("f"))
        transport = KafkaTransport(platform.config, message_timeout_ms=2_000)
        calls = Calls(transport, "f")
        calls.submit(b"1")
        wait_for(lambda: calls.accepted == [None])
        invocation = calls.invocation(b"2")
        broker.freeze()
        transport.submit(invocation, calls.spec, calls.accepted.append, calls.take)
        wait_for(lambda: len(calls.accepted) == 2)
        assert isinstance(calls.accepted[1], AcceptanceUnknown)
        assert "Attach" in str(calls.accepted[1])
        broker.thaw()
        transport.close(5)
    finally:
        broker.thaw()
        platform.close()


def test_transport_topic_just_created_is_waited_for(platform: KafkaPlatform) -> None:
    """A function whose topics are asked for in the moment of their creation can be called at once."""
    transport = KafkaTransport(platform.config)
    spec = function_spec("just-created")
    creating = threading.Thread(target=platform.deploy, args=(spec,))
    creating.start()
    assert transport.directory.wait(lambda: transport.directory.function(spec.name) is not None, 20)
    calls = Calls(transport, spec.name)
    calls.submit(b"now")
    wait_for(lambda: calls.accepted == [None])
    creating.join()
    transport.close(5)


def test_transport_large_results_arrive(platform: KafkaPlatform) -> None:
    """A record larger than the fetch size of a partition is read all the same, and what follows it."""
    calls = deployed(platform, "large")
    large = b"x" * 1_900_000
    calls.submit(large)
    calls.submit(b"small")
    wait_for(lambda: sorted(map(len, calls.values)) == [5, len(large)])
    calls.transport.close(5)


def test_transport_broker_that_is_not_there_is_said_in_time() -> None:
    """Connecting to a closed port fails with the address, and nobody's secrets are in message or log."""
    config = ConnectionConfig("127.0.0.1:9", security={"sasl.password": "hunter2"})
    started = time.monotonic()
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:9"):
        KafkaTransport(config)
    assert time.monotonic() - started < 25


def test_transport_secrets_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Not even at level DEBUG, with the client's own configuration dump asked for."""
    security = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "ada",
        "sasl.password": "hunter2",
        "debug": "conf,security,broker",
    }
    with caplog.at_level(logging.DEBUG):
        producer = RecordProducer(ConnectionConfig("127.0.0.1:9", security=security))
        reports: list[KafkaFailure | None] = []
        producer.send("t", b"v", on_report=lambda failure, *_: reports.append(failure))
        wait_for(lambda: any("Connect" in record.getMessage() for record in caplog.records))
        producer.close(0)
    assert caplog.records
    assert "hunter2" not in caplog.text


def test_transport_namespace_without_platform_is_said(broker: Broker) -> None:
    """A broker without the topics of a namespace is no platform: the error names what starts one."""
    with pytest.raises(PlatformNotRunning, match="`pelton up`"):
        KafkaTransport(ConnectionConfig(broker.bootstrap_servers, "nobody"))


def test_transport_backpressure_of_a_closed_connection_is_refused(platform: KafkaPlatform) -> None:
    """`submit` after `close` is refused before anything is sent."""
    platform.deploy(function_spec("closed"))
    calls = Calls(KafkaTransport(platform.config), "closed")
    invocation = calls.invocation(b"x")
    calls.transport.close(1)
    with pytest.raises(TransportError) as caught:
        calls.transport.submit(invocation, calls.spec, calls.accepted.append, calls.take)
    assert not isinstance(caught.value, SubmitFailed | AcceptanceUnknown)
    assert platform.inputs("closed") == []


def test_transport_reads_replies_without_a_group(platform: KafkaPlatform) -> None:
    """A client that calls leaves no consumer group behind, neither with members nor with offsets."""
    calls = deployed(platform, "no-group")
    calls.submit(b"x")
    wait_for(lambda: calls.values == [b"x"])
    # Kept until it has answered: a client that nobody has any more may take its answer along.
    admin = AdminClient({"bootstrap.servers": platform.config.bootstrap_servers})
    names = [group.group_id for group in admin.list_consumer_groups().result(timeout=30).valid]
    assert not [name for name in names if name.startswith("transport")]
    calls.transport.close(5)


# --- signatures ---


@pytest.fixture
def signed(platform: KafkaPlatform, tmp_path: Path) -> Iterator[KafkaDirectory]:
    """A directory with the key of the namespace."""
    platform.keyring.save(tmp_path / "key")
    directory = KafkaDirectory(replace(platform.config, key_file=tmp_path / "key"))
    yield directory
    directory.close()


def test_transport_directory_takes_signed_specs_alone(
    platform: KafkaPlatform, signed: KafkaDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    """Unsigned, altered, moved and foreign entries are ignored with an alarm; what was known stays."""
    spec = function_spec("guarded")
    body = encode_function_spec(spec)
    seal = platform.keyring.seal
    stranger = Keyring([Key("f" * 8, b"s" * 32)], "transport")
    platform.put(Control.FUNCTIONS, spec_key("guarded"), seal("function-spec", body))
    assert signed.wait(lambda: signed.function("guarded") == spec, 20)
    newer = encode_function_spec(replace(spec, version=2))
    altered = bytearray(seal("function-spec", newer))
    altered[-1] ^= 1
    attempts = {
        "unsigned": newer,
        "altered": bytes(altered),
        "for another purpose": seal("container-spec", newer),
        "by a strange key": stranger.seal("function-spec", newer),
        "of another function": seal("function-spec", encode_function_spec(function_spec("other"))),
    }
    for value in attempts.values():
        platform.put(Control.FUNCTIONS, spec_key("guarded"), value)
    container = ContainerSpec("box", 1, (), "0" * 64)
    platform.put(Control.CONTAINERS, spec_key("box"), encode_container_spec(container))
    with caplog.at_level(logging.ERROR, "pelton.transport"):
        assert signed.refresh(20)
    assert signed.function("guarded") == spec
    assert signed.container("box") is None
    alarms = [record for record in caplog.records if record.name == "pelton.transport"]
    assert len(alarms) == len(attempts) + 1
    platform.put(Control.FUNCTIONS, spec_key("guarded"), None)
    assert signed.wait(lambda: signed.function("guarded") is None, 20)


def test_transport_directory_without_a_key_takes_specs_as_data(
    platform: KafkaPlatform, tmp_path: Path
) -> None:
    """A client that has no key reads what is sealed, whoever sealed it, and still no unsealed bytes."""
    spec = function_spec("open")
    stranger = Keyring([Key("f" * 8, b"s" * 32)], "transport")
    sealed = stranger.seal("function-spec", encode_function_spec(spec))
    platform.put(Control.FUNCTIONS, spec_key("open"), sealed)
    platform.put(Control.FUNCTIONS, spec_key("bare"), encode_function_spec(function_spec("bare")))
    directory = KafkaDirectory(replace(platform.config, home=tmp_path))
    assert directory.function("open") == spec
    assert directory.function("bare") is None
    directory.close()


def test_transport_directory_verifies_with_the_key_of_the_home_folder(
    platform: KafkaPlatform, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that names no key file takes what the key at home signed, and names the key otherwise."""
    (tmp_path / "keys").mkdir()
    platform.keyring.save(tmp_path / "keys" / "transport.json")
    stranger = Keyring([Key("f" * 8, b"s" * 32)], "transport")
    for name, ring in {"ours": platform.keyring, "theirs": stranger}.items():
        sealed = ring.seal("function-spec", encode_function_spec(function_spec(name)))
        platform.put(Control.FUNCTIONS, spec_key(name), sealed)
    with caplog.at_level(logging.ERROR, "pelton.transport"):
        directory = KafkaDirectory(replace(platform.config, home=tmp_path))
    assert directory.function("ours") == function_spec("ours")
    assert directory.function("theirs") is None
    directory.close()
    assert any(
        str(tmp_path) in text and "PELTON_KEY_FILE" in text and "theirs" in text for text in caplog.messages
    )


def test_transport_key_file_that_does_not_fit_is_refused(platform: KafkaPlatform, tmp_path: Path) -> None:
    """A key file that is missing, open to others, or of another namespace ends connecting with the reason."""
    missing = replace(platform.config, key_file=tmp_path / "none")
    with pytest.raises(SignatureError):
        KafkaDirectory(missing)
    Keyring.create(tmp_path / "other", "elsewhere")
    with pytest.raises(SignatureError, match="elsewhere"):
        KafkaDirectory(replace(platform.config, key_file=tmp_path / "other"))
    platform.keyring.save(tmp_path / "open")
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(SignatureError):
        KafkaDirectory(replace(platform.config, key_file=tmp_path / "open"))


def test_transport_settings_in_force() -> None:
    """The settings that promises rest on are what the clients are made with, whatever the security says."""
    config = ConnectionConfig("h:1", security={"socket.timeout.ms": "5"})
    producer = producer_settings(config, 4_000, 10, 10)
    assert (producer["acks"], producer["enable.idempotence"], producer["linger.ms"]) == ("all", True, 0)
    assert producer["partitioner"] == "murmur2_random"
    assert producer["message.timeout.ms"] == 4_000
    reader = reader_settings(config)
    assert reader["auto.offset.reset"] == "error"
    assert reader["fetch.queue.backoff.ms"] == 10
    assert reader["enable.auto.commit"] is False
    assert reader["socket.timeout.ms"] == "5"
