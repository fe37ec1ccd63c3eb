"""Functions that call functions: through a real instance, with as few slots as there can be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pelton.core.call import MAX_DEPTH, parse_call_id
from pelton.core.spec import FunctionKind, ParameterSpec
from pelton.protocol.codec import decode_invocation
from support.embedded_broker import Broker
from support.worker_instance import Platform, platform_on, wait_until

pytestmark = pytest.mark.integration

ANY = (ParameterSpec("args", "VAR_POSITIONAL", False), ParameterSpec("kwargs", "VAR_KEYWORD", False))

SOURCE = """
import asyncio, os, threading, time
from pelton import context, errors, function_ref, gather

def note(text):
    with open(os.environ["JOURNAL"], "a") as journal:
        journal.write(text + "\\n")

def down(n):
    return 0 if n == 0 else 1 + function_ref("down")(n - 1)

def ping(n):
    return ["ping"] if n == 0 else ["ping", *function_ref("pong")(n - 1)]

def pong(n):
    return ["pong"] if n == 0 else ["pong", *function_ref("ping")(n - 1)]

def add(a, b):
    return a + b

def sums(n):
    add = function_ref("add")
    assert gather(*(add.async_call(i, 1) for i in range(n))) == list(range(1, n + 1))
    assert list(add.map(range(n), range(n))) == [2 * i for i in range(n)]
    assert sorted(add.map(range(n), range(n), ordered=False)) == [2 * i for i in range(n)]
    return sum(add.starmap([(i, 0) for i in range(n)]))

def count(n):
    for number in range(n):
        yield number

def total(n):
    return sum(function_ref("count")(n))

def relay(n):
    for number in function_ref("count")(n):
        yield number * 10

def ready():
    function_ref("add").wait_ready(20)
    return function_ref("add")(1, 2)

def failing(kind):
    if kind == "user": raise KeyError("k")
    if kind == "unknown": return function_ref("not-there")(1)
    if kind == "arguments": return function_ref("add")(__import__("threading").Lock(), 1)
    return function_ref("failing")("user")

def late(n):
    try:
        function_ref("slow").async_call(n).result(0.05)
    except TimeoutError:
        return "late"

def slow(n):
    time.sleep(n)
    return n

def fire(n):
    return [function_ref("add").submit(i, i) for i in range(n)]

def lineage():
    return context().call_id

def outer():
    return [context().call_id, function_ref("lineage")()]

def threads(n):
    import contextvars
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(n) as pool:
        runs = [pool.submit(contextvars.copy_context().run, function_ref("add"), i, 1) for i in range(n)]
        return sum(run.result() for run in runs)

def inside():
    import socket, stat, sys
    function_ref("add")(1, 1)
    sockets = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(fd)).st_mode):
                sockets.append(socket.socket(fileno=os.dup(int(fd))).family.name)
        except OSError:
            pass  # the descriptor by which the folder was read
    clients = [name for name in sys.modules if name.split(".")[0] in ("confluent_kafka", "aiokafka")]
    files = [line.split()[-1] for line in open("/proc/self/maps") if "rdkafka" in line]
    return [dict(os.environ), sockets, clients, files]

def forks():
    add = function_ref("add")
    assert add(1, 1) == 2
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            add(1, 1)
            said = "answered"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.wait()
    return [os.read(reading, 1000).decode(), add(2, 2)]

def connects():
    import pelton
    pelton.connect("127.0.0.1:1")

# Seconds in which threads of this process, which share one interpreter, could have run and had no processor.
def waited_for_cpu():
    waited = 0
    for thread in os.listdir("/proc/self/task"):
        try:
            waited += int(open(f"/proc/self/task/{thread}/schedstat").read().split()[1])
        except OSError:
            pass  # it has ended
    return waited / 1e9

async def beating(seconds):
    beats = []
    async def beat():
        while True:
            began, starved = time.monotonic(), waited_for_cpu()
            await asyncio.sleep(0.005)
            beats.append(time.monotonic() - began - (waited_for_cpu() - starved))
    heart = asyncio.create_task(beat())
    async def one():
        return [function_ref("slow")(seconds) for _ in range(3)]
    done = await asyncio.gather(*(one() for _ in range(8)))
    heart.cancel()
    return [len(beats), [gap for gap in beats if gap > 0.05], sum(len(each) for each in done)]

async def adown(n):
    return 0 if n == 0 else 1 + await function_ref("adown").async_call(n - 1)

async def bdown(n):
    return 0 if n == 0 else 1 + function_ref("bdown")(n - 1)

async def agather(n):
    add = function_ref("add")
    assert await asyncio.gather(*(add.async_call(i, 1) for i in range(n))) == list(range(1, n + 1))
    assert [v async for v in add.amap(range(n), range(n))] == [2 * i for i in range(n)]
    assert sorted([v async for v in add.amap(range(n), range(n), ordered=False)]) == [2 * i for i in range(n)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.wait_for(add.async_call(i, 0), 20)) for i in range(n)]
    waited = await add.async_call(1, 1).as_asyncio()
    assert waited == 2
    return sum(task.result() for task in tasks)

async def atotal(n):
    return sum([number async for number in function_ref("count")(n)])

async def bridged(n):
    add = function_ref("add")
    add.wait_ready(20)
    assert add(1, 1) == 2
    assert gather(*(add.async_call(i, 1) for i in range(n))) == list(range(1, n + 1))
    assert list(add.map(range(n), range(n))) == [2 * i for i in range(n)]
    assert sorted(add.map(range(n), range(n), ordered=False)) == [2 * i for i in range(n)]
    assert add.async_call(2, 2).accepted.result(20) is None
    try:
        add(1, "x")
    except errors.FunctionError as error:
        assert "TypeError" in str(error)
    return sum(function_ref("count")(n))
"""

KINDS = {
    "down": FunctionKind.SYNC,
    "ping": FunctionKind.SYNC,
    "pong": FunctionKind.SYNC,
    "add": FunctionKind.SYNC,
    "sums": FunctionKind.SYNC,
    "count": FunctionKind.GENERATOR,
    "total": FunctionKind.SYNC,
    "relay": FunctionKind.GENERATOR,
    "ready": FunctionKind.SYNC,
    "failing": FunctionKind.SYNC,
    "late": FunctionKind.SYNC,
    "slow": FunctionKind.SYNC,
    "fire": FunctionKind.SYNC,
    "lineage": FunctionKind.SYNC,
    "outer": FunctionKind.SYNC,
    "threads": FunctionKind.SYNC,
    "inside": FunctionKind.SYNC,
    "forks": FunctionKind.SYNC,
    "connects": FunctionKind.SYNC,
    "beating": FunctionKind.ASYNC,
    "adown": FunctionKind.ASYNC,
    "bdown": FunctionKind.ASYNC,
    "agather": FunctionKind.ASYNC,
    "atotal": FunctionKind.ASYNC,
    "bridged": FunctionKind.ASYNC,
}


@pytest.fixture(scope="module")
def platform(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """All these functions in one instance, with one slot for each."""
    with platform_on(broker.bootstrap_servers, tmp_path_factory.mktemp("nested")) as platform:
        platform.deploy(SOURCE, KINDS, slots=1, partitions=2, parameters=ANY)
        platform.start_ready()
        yield platform


@pytest.mark.parametrize("function", ["down", "adown", "bdown"])
def test_nested_recursion_of_depth_20_ends_on_one_slot(platform: Platform, function: str) -> None:
    """Sync, async, and sync inside of async: a call that waits for its child gives its only slot back."""
    call = platform.call(function, 20)
    assert platform.wait(function, call, 60).value == 20
    wait_until(lambda: platform.all_done(function), what="all records finished")


def test_nested_mutual_recursion_ends_on_one_slot_each(platform: Platform) -> None:
    """Two functions that call each other, twenty calls deep."""
    call = platform.call("ping", 19)
    assert platform.wait("ping", call, 60).value == ["ping", "pong"] * 10


@pytest.mark.parametrize(
    ("function", "argument", "value"),
    [
        ("sums", (30,), 435),
        ("total", (50,), 1225),
        ("ready", (), 3),
        ("threads", (4,), 10),
        ("agather", (20,), 190),
        ("atotal", (50,), 1225),
    ],
)
def test_nested_callers_of_every_kind(
    platform: Platform, function: str, argument: tuple[int, ...], value: int
) -> None:
    """f(x), futures, gather, map, streams, wait_ready, from threads and tasks: as everywhere else."""
    call = platform.call(function, *argument)
    assert platform.wait(function, call, 60).value == value


def test_nested_blocking_calls_in_async_functions_answer(platform: Platform) -> None:
    """Call, wait_ready, gather, map, accepted, a stream, and errors, written without `await`."""
    call = platform.call("bridged", 10)
    assert platform.wait("bridged", call, 60).value == 45


def test_nested_blocking_calls_stop_no_other_task(platform: Platform) -> None:
    """While eight tasks wait in blocking calls, a heartbeat on the same loop never misses 50 ms.

    Time in which the machine had no processor for the executor is not the bridge's, and does not count.
    """
    call = platform.call("beating", 0.06)
    beats, missed, done = platform.wait("beating", call, 60).value
    assert (missed, done) == ([], 24)
    assert beats > 20


def test_nested_stream_over_a_stream(platform: Platform) -> None:
    """A generator that yields what another one yields."""
    call = platform.call("relay", 40)
    assert platform.wait("relay", call, 60).chunks == [10 * number for number in range(40)]


def test_nested_failures_reach_the_caller_as_everywhere(platform: Platform) -> None:
    """User errors by their name, unknown functions and bad arguments before anything is sent."""
    calls = {kind: platform.call("failing", kind) for kind in ("nested", "unknown", "arguments")}
    failures = {}
    for kind, call in calls.items():
        outcome = platform.wait("failing", call, 60).outcome
        assert outcome is not None
        assert outcome.failure is not None
        failures[kind] = (outcome.failure.type, outcome.failure.message)
    assert failures["nested"] == ("pelton.errors.FunctionError", "KeyError: 'k'")
    assert failures["unknown"][0] == "pelton.errors.FunctionNotFound"
    assert failures["arguments"][0] == "pelton.errors.UnsupportedType"


def test_nested_wait_that_times_out_returns_with_its_slot(platform: Platform) -> None:
    """A timeout ends the wait, not the nested call; the caller goes on once it has its slot again."""
    call = platform.call("late", 1)
    assert platform.wait("late", call, 60).value == "late"
    wait_until(lambda: platform.all_done("slow"), what="the slow call")


def test_nested_calls_that_nobody_waits_for_are_sent(platform: Platform) -> None:
    """submit from a function: every one runs."""
    call = platform.call("fire", 20)
    ids = [parse_call_id(text) for text in platform.wait("fire", call, 60).value]
    found = platform.wait_all("add", ids)
    assert [found[each].value for each in ids] == [2 * number for number in range(20)]


def test_nested_calls_know_their_ancestors(platform: Platform) -> None:
    """Parent and ancestry are in the record of the child, in the body and in the header."""
    call = platform.call("outer")
    mine, child = platform.wait("outer", call, 60).value
    (record,) = platform.read(platform.topics.invocations("lineage"))
    invocation = decode_invocation(record.value)
    assert (invocation.parent, invocation.ancestry) == (call, (call,))
    assert dict(record.headers)["an"] == call
    assert mine != child


def test_nested_calls_deeper_than_the_limit_are_refused(platform: Platform) -> None:
    """The 65th ancestor is one too many: CallTooDeep, which every caller on the way sees as an error."""
    call = platform.call("down", MAX_DEPTH)
    assert platform.wait("down", call, 90).value == MAX_DEPTH
    call = platform.call("down", MAX_DEPTH + 1)
    outcome = platform.wait("down", call, 90).outcome
    assert outcome is not None
    assert outcome.failure is not None
    assert "CallTooDeep" in outcome.failure.message


def test_nested_calls_need_no_way_to_kafka_in_the_executor(platform: Platform) -> None:
    """After a nested call: no client, no network socket, no key, no address in the executor."""
    call = platform.call("inside")
    environment, sockets, clients, files = platform.wait("inside", call, 60).value
    assert (clients, files) == ([], [])
    assert set(sockets) == {"AF_UNIX"}
    told = " ".join(f"{name}={value}" for name, value in environment.items())
    assert platform.config.bootstrap_servers not in told
    assert str(platform.key_file) not in told
    assert not [name for name in environment if "KAFKA" in name or "SECURITY" in name]


def test_nested_calls_from_a_forked_child_are_refused(platform: Platform) -> None:
    """A child that a function forked is told so at once; its parent goes on."""
    call = platform.call("forks")
    said, value = platform.wait("forks", call, 60).value
    assert said.startswith("TransportError: a process that a function forked")
    assert value == 4


def test_nested_connect_is_refused(platform: Platform) -> None:
    """Functions call through their instance: there is nothing to connect to."""
    outcome = platform.wait("connects", platform.call("connects"), 60).outcome
    assert outcome is not None
    assert outcome.failure is not None
    assert outcome.failure.type == "pelton.errors.UnsupportedOption"
