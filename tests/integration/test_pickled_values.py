"""Values that are no plain data, between callers, functions and functions that they call."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from pelton import errors, function_ref
from pelton.client import session
from pelton.core.call import (
    InputHeaders,
    Invocation,
    Result,
    ResultKind,
    Token,
    call_id_text,
    reply_partition,
)
from pelton.core.spec import FunctionKind, ParameterSpec
from pelton.protocol import payload, pickles
from pelton.protocol.codec import encode_invocation, encode_result
from pelton.protocol.headers import encode_input
from pelton.protocol.headers import encode_result as result_headers
from pelton.transport.kafka.calls import KafkaTransport
from support.embedded_broker import Broker
from support.worker_instance import Platform, new_call, platform_on

pytestmark = pytest.mark.integration

ANY = (ParameterSpec("args", "VAR_POSITIONAL", False),)

SOURCE = """
from fractions import Fraction
from pelton import function_ref

def half(value):
    return value / 2

async def ahalf(value):
    return value / 2

def parts(value):
    while value > 1:
        value -= 1
        yield value

def outer(value):
    return [function_ref("half")(value), *function_ref("parts")(value)]

def apply(change, value):
    return change(value)

class Odd(Exception):
    pass

def unpicklable():
    import threading
    return threading.Lock()
"""
KINDS = {
    "half": FunctionKind.SYNC,
    "ahalf": FunctionKind.ASYNC,
    "parts": FunctionKind.GENERATOR,
    "outer": FunctionKind.SYNC,
    "apply": FunctionKind.SYNC,
    "unpicklable": FunctionKind.SYNC,
}


@pytest.fixture(scope="module")
def platform(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One instance, and this process connected to it with the key."""
    with platform_on(broker.bootstrap_servers, tmp_path_factory.mktemp("pickled")) as platform:
        platform.deploy(SOURCE, KINDS, partitions=1, parameters=ANY)
        platform.start_ready()
        with closing(session.install(KafkaTransport(platform.config))):
            yield platform


@pytest.mark.usefixtures("platform")
def test_pickled_values_go_and_come_back() -> None:
    """Arguments, values, chunks, functions; sync and async; through nested calls and their streams."""
    third = Fraction(10, 3)
    assert function_ref("half")(third) == third / 2
    assert function_ref("ahalf")(third) == third / 2
    assert list(function_ref("parts")(third)) == [third - 1, third - 2, third - 3]
    assert function_ref("outer")(third) == [third / 2, third - 1, third - 2, third - 3]
    factor = 7
    assert function_ref("apply")(lambda x: x * factor, 6) == 42
    future = function_ref("half").async_call(third)
    assert function_ref("half").attach(future.call_id).result(30) == third / 2
    with pytest.raises(errors.CallFailed, match=r"_thread\.lock, which cannot be pickled"):
        function_ref("unpicklable")()


def test_pickles_need_the_key(platform: Platform, tmp_path: Path) -> None:
    """A caller without one sends none, and is told why it cannot read one."""
    bare = replace(platform.config, key_file=None, home=tmp_path)
    future = function_ref("half").async_call(Fraction(1))
    assert future.result(30) == Fraction(1, 2)
    transport = KafkaTransport(bare)
    try:
        spec = transport.directory.function("half")
        assert spec is not None
        call_id, _ = new_call()
        arguments = payload.encode_arguments((Fraction(1),), {}, pickles=True)
        with pytest.raises(errors.UnsupportedType, match="PELTON_KEY_FILE names the key file"):
            transport.submit(
                Invocation(call_id, "half", arguments), spec, lambda error: None, lambda results: None
            )
        found: list[Result] = []
        transport.attach("half", uuid.UUID(future.call_id).bytes, found.extend, 20)
        failure = next(each.failure for each in found if each.kind is ResultKind.OUTCOME)
        assert failure is not None
        assert failure.message == "the value has pickled parts, and there is no key here to check them with"
    finally:
        transport.close(1)


class Hostile:
    """Makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, (str(self.folder),)


def test_forged_pickles_run_nothing(platform: Platform, tmp_path: Path) -> None:
    """Arguments that nobody signed for their call are a dead letter; such results are passed over."""
    touched = tmp_path / "touched"
    arguments = payload.encode_arguments((Hostile(touched),), {}, pickles=True)
    value = payload.encode(Hostile(touched), pickles=True)
    other, ring = new_call()[0], platform.keyring
    forge: list[Callable[[bytes], bytes]] = [
        lambda _: arguments,
        lambda me: pickles.content(pickles.sign(ring, "half", me, pickles.ARGUMENTS, arguments)),
        lambda _: pickles.sign(ring, "half", other, pickles.ARGUMENTS, arguments),
        lambda me: pickles.sign(ring, "outer", me, pickles.ARGUMENTS, arguments),
        lambda me: pickles.sign(ring, "half", me, pickles.RESULT, arguments),
    ]
    for make in forge:
        call_id, _ = new_call()
        body = encode_invocation(Invocation(call_id, "half", make(call_id)))
        headers = encode_input(InputHeaders(call_id, "half"))
        platform.send(platform.topics.invocations("half"), body, call_id, headers=headers)
        outcome = platform.wait("half", call_id).outcome
        assert outcome is not None
        assert outcome.failure is not None
        assert outcome.failure.code == "INVALID_ARGUMENT"
    assert len(platform.dead_letters("half")) == len(forge)
    assert not touched.exists()
    # Who may write there may end a call with nonsense, but not with code that runs here.
    unsigned = forge_result(platform, value)
    with pytest.raises(errors.PayloadCorrupt, match="without a signature"):
        function_ref("half").attach(unsigned).result(30)
    passed_over = forge_result(platform, pickles.sign(ring, "half", other, pickles.RESULT, value))
    assert function_ref("half").attach(passed_over).result(30) == Fraction(3, 2)
    assert not touched.exists()


def forge_result(platform: Platform, item: bytes) -> str:
    """A call, and before its outcome one with the highest token and this value; its id."""
    call_id, _ = new_call()
    token = Token(9, 1 << 60, 0, 0, 1)
    platform.send(
        platform.topics.results("half"),
        encode_result(Result(call_id, token, ResultKind.OUTCOME, 0, (item,))),
        call_id,
        partition=reply_partition(call_id),
        headers=result_headers(call_id, token, b""),
    )
    arguments = payload.encode_arguments((Fraction(3),), {}, pickles=True)
    signed = pickles.sign(platform.keyring, "half", call_id, pickles.ARGUMENTS, arguments)
    platform.send(
        platform.topics.invocations("half"),
        encode_invocation(Invocation(call_id, "half", signed)),
        call_id,
        headers=encode_input(InputHeaders(call_id, "half")),
    )
    return call_id_text(call_id)
