"""Arguments, values and chunks above 512 KiB: kept in the object store, through every kind of call."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Set
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pelton import errors, function_ref
from pelton.client import session
from pelton.core.call import InputHeaders, Invocation
from pelton.core.spec import FunctionKind, ParameterSpec
from pelton.protocol import payload
from pelton.protocol.claims import Claim, decode_claim, encode_claim, is_claim
from pelton.protocol.codec import encode_invocation
from pelton.protocol.headers import encode_input
from pelton.transport.kafka.calls import KafkaTransport
from pelton.transport.kafka.ranges import RangeReader
from pelton.transport.payloads import ObjectStore, encode_arguments
from pelton_platform import process
from pelton_platform.deploy.sweeping import KEPT_S, Sweeper, read_named
from support.embedded_broker import Broker
from support.object_stores import CREDENTIALS, place_of_kind
from support.worker_instance import Platform, new_call

pytestmark = pytest.mark.integration

ANY = (ParameterSpec("args", "VAR_POSITIONAL", False),)

SOURCE = """
import os
from fractions import Fraction
from pelton import function_ref

def echo(value):
    return value

async def aecho(value):
    return value

def pieces(value, count):
    for number in range(count):
        yield (number, value)

async def apieces(value, count):
    for number in range(count):
        yield (number, value)

def outer(value):
    future = function_ref("aecho").async_call(value)
    return [function_ref("echo")(value), *function_ref("pieces")(value, 2), future.result()]

async def aouter(value):
    return [await function_ref("echo").async_call(value), function_ref("aecho")(value)]

def measured(value):
    with open("/proc/self/status") as status:
        words = dict(line.split(":", 1) for line in status)
    return value, int(words["RssAnon"].split()[0])

def holds():
    return sorted(name for name in os.environ if "AWS" in name or "STORE" in name or "ACCESS" in name)

class Deadly:
    def __reduce__(self):
        os.kill(os.getpid(), 9)

def dies(value):
    return [value, Deadly()]
"""
KINDS = {
    "echo": FunctionKind.SYNC,
    "aecho": FunctionKind.ASYNC,
    "pieces": FunctionKind.GENERATOR,
    "apieces": FunctionKind.ASYNC_GENERATOR,
    "outer": FunctionKind.SYNC,
    "aouter": FunctionKind.ASYNC,
    "measured": FunctionKind.SYNC,
    "holds": FunctionKind.SYNC,
    "dies": FunctionKind.SYNC,
}
TEXT = "ä" * 400_000
MIB = 1 << 20


@dataclass
class Stage:
    """A platform with an instance, and its store."""

    platform: Platform
    store: ObjectStore
    folder: Path

    @property
    def exchanged(self) -> list[Path]:
        """What lies in the instance's folder of exchange."""
        return [path for folder in self.folder.glob("*.payloads") for path in folder.iterdir()]


@pytest.fixture(scope="module", params=["folder", "bucket"])
def stage(
    broker: Broker, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Stage]:
    """One instance, and this process connected to it, with a store of each kind."""
    folder = tmp_path_factory.mktemp("large")
    with place_of_kind(request.param, folder) as place:
        platform = Platform(broker.bootstrap_servers, folder, place.url, place.options)
        try:
            platform.deploy(SOURCE, KINDS, partitions=1, parameters=ANY)
            platform.start_ready()
            with closing(session.install(KafkaTransport(platform.config))):
                yield Stage(platform, ObjectStore(place.url, place.options), folder)
        finally:
            platform.close()


def test_large_values_go_and_come_back(stage: Stage) -> None:
    """Sync and async functions; values of every size and the small ones beside them; nothing is left over."""
    for name in ("echo", "aecho"):
        for value in (TEXT, {"a": [b"x" * MIB, 1], 2: TEXT}, list(range(300_000)), b"y" * (5 * MIB), "small"):
            assert function_ref(name)(value) == value
    assert function_ref("echo").attach(function_ref("echo").async_call(TEXT).call_id).result(30) == TEXT
    assert stage.exchanged == []


def test_large_chunks_stream(stage: Stage) -> None:
    """Each chunk comes whole and in order."""
    for name in ("pieces", "apieces"):
        assert list(function_ref(name)(TEXT, 3)) == [(0, TEXT), (1, TEXT), (2, TEXT)]
    assert stage.exchanged == []


def test_large_values_in_nested_calls(stage: Stage) -> None:
    """Executors keep and fetch through their coordinator, from threads and from their event loop."""
    assert function_ref("outer")(TEXT) == [TEXT, (0, TEXT), (1, TEXT), TEXT]
    assert function_ref("aouter")(TEXT) == [TEXT, TEXT]
    assert stage.exchanged == []


def test_large_values_are_awaited(stage: Stage) -> None:
    """`await`, `async for` and `asyncio` futures."""

    async def main() -> list[Any]:
        value = await function_ref("aecho").async_call(TEXT)
        chunks = [chunk async for chunk in function_ref("pieces")(TEXT, 2)]
        return [value, chunks, await function_ref("echo").async_call(TEXT).as_asyncio()]

    assert asyncio.run(main()) == [TEXT, [(0, TEXT), (1, TEXT)], TEXT]


def test_large_pickles_are_signed(stage: Stage) -> None:
    """What is no plain data travels too; a claim check that somebody else wrote opens no pickle."""
    value = [Fraction(number, 3) for number in range(12_000)]
    assert function_ref("echo")(value) == value
    arguments = encode_arguments(stage.store, "echo", (value,), {})
    assert not is_claim(arguments)  # wrapped, for whoever signs it
    claim = next(claim for claim in stage.store.objects())
    plain = encode_claim(decode_claim(_inside(arguments)))
    before = len(stage.platform.dead_letters("echo"))
    outcome = _sent(stage.platform, "echo", plain)
    assert outcome.failure is not None
    assert "pickled parts" in outcome.failure.message
    assert len(stage.platform.dead_letters("echo")) == before + 1
    assert claim.size > 0


def test_missing_and_altered_objects_are_dead_letters(stage: Stage) -> None:
    """An object that is gone, or is not what was stored, never runs and never hangs."""
    good = decode_claim(encode_arguments(stage.store, "echo", (TEXT,), {}))
    cases = {
        "there is no echo/": good._replace(id=bytes(16)),
        "its digest differs": good._replace(digest=bytes(32)),
        "does not have the size": good._replace(size=good.size + 1),
    }
    for words, claim in cases.items():
        outcome = _sent(stage.platform, "echo", encode_claim(claim))
        assert outcome.failure is not None
        assert outcome.failure.code == "INVALID_ARGUMENT"
        assert words in outcome.failure.message
    assert _sent(stage.platform, "echo", encode_claim(good)).failure is None
    with pytest.raises(errors.PayloadCorrupt, match=r"names no object|cannot be read"):
        decode_claim(encode_claim(Claim("../../etc", bytes(16), 1, bytes(32))))
    assert stage.exchanged == []


def test_records_name_their_objects(stage: Stage) -> None:
    """What finished, waits or was given up is found in the log; what nobody names any more is swept."""
    platform = stage.platform
    ranges = RangeReader(platform.config)
    try:

        def named(function: str) -> Set[bytes]:
            return read_named(platform.admin, ranges, platform.topics, function)

        future = function_ref("echo").async_call(TEXT)
        assert future.result(30) == TEXT
        orphan = decode_claim(encode_arguments(stage.store, "pieces", (TEXT, 1), {}))
        waiting = decode_claim(encode_arguments(stage.store, "never", (TEXT,), {}))
        there = {each.path: each.id for each in stage.store.objects()}
        echoes = {identity for path, identity in there.items() if path.startswith("echo/")}
        # The results of the last test's forged calls name nothing of their own, so nothing is left over.
        assert echoes <= named("echo") | {bytes(16)}
        assert orphan.id not in named("pieces")
        assert named("never") == set()
        clock = [2_000_000_000.0]
        sweeper = Sweeper(stage.store, named, lambda: clock[0])
        assert sweeper.sweep().removed == 0
        clock[0] += KEPT_S
        assert sweeper.sweep().removed >= 2
        left = {each.path for each in stage.store.objects()}
        assert orphan.path not in left
        assert waiting.path not in left
        assert function_ref("echo").attach(future.call_id).result(30) == TEXT
    finally:
        ranges.close()


def test_executors_have_no_way_to_the_store(stage: Stage) -> None:
    """Their environment names none, and what one that dies while it writes has left goes with it."""
    assert function_ref("holds")() == []
    with pytest.raises(errors.CallUnavailable):
        function_ref("dies")(b"x" * MIB)
    assert stage.exchanged == []


def test_arguments_without_a_store_are_refused(stage: Stage) -> None:
    """Before anything is sent; the message says what to set."""
    with pytest.raises(errors.PayloadTooLarge, match="PELTON_STORE names one"):
        encode_arguments(None, "echo", (TEXT,), {})


def test_store_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    """In bounded time, and in words."""
    options = {**CREDENTIALS, "endpoint": f"http://127.0.0.1:{process.free_port()}"}
    store = ObjectStore("s3://nowhere", options)
    with pytest.raises(errors.PayloadUnavailable, match=r"f/0000.* in s3://nowhere"):
        store.open(Claim("f", bytes(16), 1, bytes(32)))
    with pytest.raises(errors.PayloadUnavailable):
        encode_arguments(store, "f", (TEXT,), {})


def test_forked_child_cannot_share_a_bucket(tmp_path: Path) -> None:
    """The library's threads stay with the parent: the child is told, and a folder goes on working."""
    with place_of_kind("bucket", tmp_path) as place:
        store = ObjectStore(place.url, place.options)
        store.write_note("note", b"mine")
        beside = ObjectStore(tmp_path.as_uri())
        claim = decode_claim(encode_arguments(beside, "f", (TEXT,), {}))
        child = os.fork()
        if not child:
            code = 1
            try:
                os.close(beside.open(claim))
                store.read_note("note")
            except errors.PayloadUnavailable as error:
                code = 0 if "forked after its parent" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert store.read_note("note") == b"mine"


def _inside(wrapped: bytes) -> bytes:
    import msgspec

    return bytes(msgspec.msgpack.decode(wrapped).data)


def _sent(platform: Platform, function: str, arguments: bytes) -> Any:
    """The outcome of a call with this payload."""
    call_id, _ = new_call()
    body = encode_invocation(Invocation(call_id, function, arguments))
    headers = encode_input(InputHeaders(call_id, function))
    platform.send(platform.topics.invocations(function), body, call_id, headers=headers)
    outcome = platform.wait(function, call_id).outcome
    assert outcome is not None
    return outcome


def test_payload_reads_nothing_without_a_store() -> None:
    """A reader that has no store says so."""
    with pytest.raises(errors.PayloadCorrupt, match="lies in the object store"):
        payload.decode(encode_claim(Claim("echo", bytes(16), 1, bytes(32))))
