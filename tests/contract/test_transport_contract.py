"""What every transport promises a caller: one suite for memory and Kafka."""

from __future__ import annotations

import logging
import operator
import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from pelton.core.call import Result, ResultKind, mint_call_id
from pelton.core.fold import fold
from pelton.core.spec import ContainerSpec, InstanceStatus
from pelton.errors import AcceptanceUnknown, FunctionNotFound, SubmitFailed, TransportError
from pelton.protocol.codec import decode_invocation
from pelton.protocol.headers import decode_input, encode_result
from pelton.protocol.topics import RESULT_TTL_MS
from pelton.transport.memory import Delivery
from pelton.transport.partitioning import partition_of
from pelton.transport.ports import AttachState
from support.transport_callers import TOKEN, WAIT_S, Caller, Inbox, chunk, echo, outcome
from support.transport_platforms import Platform, function_spec

# --- calls ---


def test_contract_call_is_accepted_and_its_results_come_in_order(platform: Platform, caller: Caller) -> None:
    """Acceptance is told once without an error; started, chunks and outcome arrive as they were appended."""

    def work(delivery: Delivery) -> None:
        call_id = delivery.headers.call_id
        delivery.append(Result(call_id, TOKEN, ResultKind.STARTED, worker="w"))
        delivery.append(chunk(call_id, 0, b"a", b"b"))
        delivery.append(chunk(call_id, 2, b"c"))
        delivery.append(outcome(call_id, delivery.invocation.arguments, 3))

    platform.serve(caller.spec.name, work)
    _, inbox = caller.accepted(b"x")
    chunks, end = inbox.await_outcome()
    assert chunks == [b"a", b"b", b"c"]
    assert end.items == (b"x",)
    assert inbox.results[0].kind is ResultKind.STARTED
    assert inbox.accepted == [None]


def test_contract_record_of_a_call_is_what_workers_expect(platform: Platform, caller: Caller) -> None:
    """The key is the call id, headers carry routing, the body is the invocation."""
    invocation, inbox = caller.invocation(b"body", deadline_ms=77), Inbox()
    caller.transport.submit(invocation, caller.spec, inbox.on_accepted, inbox.on_results)
    inbox.await_that(lambda: inbox.accepted == [None])
    (record,) = platform.inputs(caller.spec.name)
    headers = decode_input(record.headers)
    assert record.key == invocation.call_id
    assert (headers.call_id, headers.function) == (invocation.call_id, caller.spec.name)
    assert (headers.attempt, headers.deadline_ms) == (1, 77)
    assert decode_invocation(record.value) == invocation


def test_contract_calls_without_a_key_go_round_and_those_with_one_stay_together(
    platform: Platform, caller: Caller
) -> None:
    """One after the other uses each partition in turn; a key of the user always means the same partition."""
    plain = [caller.accepted()[0] for _ in range(4)]
    for _ in range(3):
        invocation, inbox = replace(caller.invocation(), ordering_key="customer-7"), Inbox()
        caller.transport.submit(invocation, caller.spec, inbox.on_accepted, inbox.on_results)
        inbox.await_that(partial(operator.eq, inbox.accepted, [None]))
    found = platform.inputs(caller.spec.name)
    places = [next(record.partition for record in found if record.key == call_id) for call_id in plain]
    assert places[:2] == places[2:]
    assert sorted(places[:2]) == [0, 1]
    keyed = [record.partition for record in found if record.key == b"customer-7"]
    assert keyed == [partition_of(b"customer-7", 2)] * 3


def test_contract_first_reply_after_prepare_is_never_lost(platform: Platform, function: str) -> None:
    """A reply that is appended right behind the first send is read: the end was asked for before it."""
    transport = platform.transport()
    for number in range(8):
        spec = function_spec(f"{function}-{number}")
        platform.deploy(spec)
        platform.serve(spec.name, echo)
        _, inbox = Caller(transport, spec).submit(b"%d" % number)
        assert inbox.await_outcome()[1].items == (b"%d" % number,)
    transport.close(1)


def test_contract_many_calls_in_flight_each_get_their_own_answer(platform: Platform, caller: Caller) -> None:
    """300 calls at once end each with its own value, and results of one call come together."""
    platform.serve(caller.spec.name, echo)
    boxes = [(b"%d" % number, caller.submit(b"%d" % number)[1]) for number in range(300)]
    for arguments, inbox in boxes:
        assert inbox.await_outcome()[1].items == (arguments,)


def test_contract_foreign_and_unreadable_results_are_passed_over(
    platform: Platform, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """Records of other calls, of nobody, and broken ones do not reach a call nor keep its outcome from it."""
    call_id, inbox = caller.accepted()
    partition = caller.transport.prepare(caller.spec.name)
    topic = platform.topics.results(caller.spec.name)
    stranger = mint_call_id(1, partition, b"s" * 8)
    platform.append_result(caller.spec.name, outcome(stranger))
    platform.append(topic, partition, b"no avro", encode_result(stranger, TOKEN))
    platform.append(topic, partition, None, [])
    with caplog.at_level(logging.ERROR, "pelton.transport"):
        platform.append(topic, partition, b"no avro", encode_result(call_id, TOKEN))
        platform.append_result(caller.spec.name, outcome(call_id, b"mine"))
        assert inbox.await_outcome()[1].items == (b"mine",)
    assert len(inbox.results) == 1
    assert "cannot be read" in caplog.text


def test_contract_two_clients_share_a_reply_partition(
    platform: Platform, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients whose dice fell on the same partition each get their own results alone."""
    monkeypatch.setattr(random, "SystemRandom", lambda: random.Random(7))
    spec = function_spec(function)
    platform.deploy(spec)
    platform.serve(function, echo)
    callers = [Caller(platform.transport(), spec) for _ in range(2)]
    assert callers[0].transport.prepare(function) == callers[1].transport.prepare(function)
    boxes = [(b"%d" % n, callers[n % 2].submit(b"%d" % n)[1]) for n in range(40)]
    for arguments, inbox in boxes:
        assert inbox.await_outcome()[1].items == (arguments,)
        assert len(inbox.results) == 1


def test_contract_reply_partition_is_one_per_function_and_spread(platform: Platform, function: str) -> None:
    """Asking again returns the same partition; over twelve functions not all are the same."""
    transport = platform.transport()
    partitions = set()
    for number in range(12):
        platform.deploy(function_spec(f"{function}-{number}"))
        chosen = transport.prepare(f"{function}-{number}")
        assert transport.prepare(f"{function}-{number}") == chosen
        assert 0 <= chosen < 8
        partitions.add(chosen)
    assert len(partitions) > 1
    transport.close(1)


def test_contract_forgotten_calls_receive_nothing(platform: Platform, caller: Caller) -> None:
    """After `forget` no result reaches the receiver, and forgetting again changes nothing."""
    forgotten, silent = caller.accepted()
    known, inbox = caller.accepted()
    caller.transport.forget(forgotten)
    caller.transport.forget(forgotten)
    platform.append_result(caller.spec.name, outcome(forgotten))
    platform.append_result(caller.spec.name, outcome(known))
    inbox.await_outcome()
    assert silent.results == []


def test_contract_failing_receiver_harms_nobody(platform: Platform, caller: Caller) -> None:
    """A receiver that raises is told in the log; results of other calls arrive."""

    def explode(results: Sequence[Result]) -> None:
        raise ZeroDivisionError

    invocation, ignored = caller.invocation(), Inbox()
    caller.transport.submit(invocation, caller.spec, ignored.on_accepted, explode)
    call_id, inbox = caller.accepted()
    platform.append_result(caller.spec.name, outcome(invocation.call_id))
    platform.append_result(caller.spec.name, outcome(call_id))
    inbox.await_outcome()


# --- refusals ---


def test_contract_unknown_function_is_refused_before_anything_is_sent(caller: Caller) -> None:
    """`prepare` and `attach` raise FunctionNotFound and name the function."""
    with pytest.raises(FunctionNotFound, match="nobody"):
        caller.transport.prepare("nobody")
    with pytest.raises(FunctionNotFound, match="nobody"):
        caller.transport.attach("nobody", caller.mint(), Inbox().on_results, 5)


def test_contract_record_above_the_limit_is_certainly_refused(caller: Caller) -> None:
    """A record above the topic's limit ends as SubmitFailed; the next call goes through."""
    _, inbox = caller.submit(b"x" * (3 * 1024 * 1024))
    inbox.await_that(lambda: bool(inbox.accepted))
    assert isinstance(inbox.accepted[0], SubmitFailed)
    caller.accepted()


def test_contract_topic_that_is_not_there_is_certainly_refused(platform: Platform, function: str) -> None:
    """A call of a function without topics ends as SubmitFailed, within a bounded time."""
    spec = function_spec(function)
    platform.deploy(spec)
    transport = platform.transport()
    caller = Caller(transport, spec)
    missing = replace(spec, name=f"{function}-without-topics")
    invocation, inbox = caller.invocation(function=missing.name), Inbox()
    transport.submit(invocation, missing, inbox.on_accepted, inbox.on_results)
    inbox.await_that(lambda: bool(inbox.accepted))
    assert isinstance(inbox.accepted[0], SubmitFailed)
    transport.close(1)


def test_contract_missing_acknowledgement_is_unknown_and_not_repeated(
    platform: Platform, caller: Caller
) -> None:
    """Without an acknowledgement in time acceptance is unknown; the record is in the log at most once."""
    caller.accepted()
    invocation, inbox = caller.invocation(), Inbox()
    platform.freeze()
    try:
        caller.transport.submit(invocation, caller.spec, inbox.on_accepted, inbox.on_results)
        inbox.await_that(lambda: bool(inbox.accepted))
    finally:
        platform.thaw()
    assert isinstance(inbox.accepted[0], AcceptanceUnknown)
    caller.accepted()
    appended = [record.key for record in platform.inputs(caller.spec.name)]
    assert appended.count(invocation.call_id) <= 1
    assert len(inbox.accepted) == 1


def test_contract_closed_transport_says_so(platform: Platform, caller: Caller) -> None:
    """Closing flushes and returns 0, twice; what comes later is refused with the reason."""
    invocation, inbox = caller.invocation(), Inbox()
    caller.transport.submit(invocation, caller.spec, inbox.on_accepted, inbox.on_results)
    assert caller.transport.close(10) == 0
    assert inbox.accepted == [None]
    assert caller.transport.close(10) == 0
    with pytest.raises(TransportError, match="closed"):
        caller.transport.submit(invocation, caller.spec, inbox.on_accepted, inbox.on_results)
    with pytest.raises(TransportError, match="closed"):
        caller.transport.cancel(invocation.call_id, "r", inbox.on_accepted)


def test_contract_results_that_are_lost_end_the_call_with_data_loss(
    platform: Platform, caller: Caller
) -> None:
    """When the reply partition is cut away under a reader, open calls end with DATA_LOSS, later ones work."""
    first, inbox = caller.accepted()
    platform.append_result(caller.spec.name, outcome(first))
    inbox.await_outcome()
    _, waiting = caller.accepted()
    platform.recreate(platform.topics.results(caller.spec.name), 8)
    _, end = waiting.await_outcome()
    assert end.failure is not None
    assert end.failure.code == "DATA_LOSS"
    later, answered = caller.accepted()
    platform.append_result(caller.spec.name, outcome(later, b"again"))
    assert answered.await_outcome()[1].items == (b"again",)


# --- attach ---


def test_contract_attach_before_anything_happened_is_pending_and_follows(
    platform: Platform, caller: Caller
) -> None:
    """A call that waits in its input topic is pending for another client, which then gets its results."""
    call_id, _ = caller.accepted()
    other, inbox = platform.transport(), Inbox()
    assert other.attach(caller.spec.name, call_id, inbox.on_results, WAIT_S) is AttachState.PENDING
    platform.append_result(caller.spec.name, outcome(call_id, b"late"))
    assert inbox.await_outcome()[1].items == (b"late",)
    other.close(1)


def test_contract_attach_in_the_middle_replays_and_follows(platform: Platform, caller: Caller) -> None:
    """What was appended before comes first, then what is appended later; nothing twice."""
    call_id, _ = caller.accepted()
    platform.append_result(caller.spec.name, chunk(call_id, 0, b"a", b"b"))
    other, inbox = platform.transport(), Inbox()
    assert other.attach(caller.spec.name, call_id, inbox.on_results, WAIT_S) is AttachState.PENDING
    assert [result.items for result in inbox.results] == [(b"a", b"b")]
    platform.append_result(caller.spec.name, chunk(call_id, 2, b"c"))
    platform.append_result(caller.spec.name, outcome(call_id, first=3))
    assert inbox.await_outcome()[0] == [b"a", b"b", b"c"]
    assert len(inbox.results) == 3
    other.close(1)


def test_contract_attach_after_the_outcome_is_finished(platform: Platform, caller: Caller) -> None:
    """A finished call is replayed whole before `attach` returns."""
    call_id, _ = caller.accepted()
    platform.append_result(caller.spec.name, chunk(call_id, 0, b"a"))
    platform.append_result(caller.spec.name, outcome(call_id, b"v", 1))
    other, inbox = platform.transport(), Inbox()
    assert other.attach(caller.spec.name, call_id, inbox.on_results, WAIT_S) is AttachState.FINISHED
    chunks, end = fold(inbox.results)
    assert chunks == [b"a"]
    assert end is not None
    assert end.items == (b"v",)
    other.close(1)


def test_contract_attach_while_a_stream_is_written_sees_every_chunk_once(
    platform: Platform, caller: Caller
) -> None:
    """Receivers that attach at any moment of a stream see all its records once, in order."""
    call_id, first = caller.accepted()
    total = 400
    inboxes = [first]

    def write() -> None:
        for number in range(total):
            platform.append_result(caller.spec.name, chunk(call_id, number, b"%d" % number))
        platform.append_result(caller.spec.name, outcome(call_id, first=total))

    writing = threading.Thread(target=write)
    writing.start()
    other = platform.transport()
    for transport in (other, other, caller.transport):
        inbox = Inbox()
        inboxes.append(inbox)
        transport.attach(caller.spec.name, call_id, inbox.on_results, WAIT_S)
    writing.join()
    for inbox in inboxes:
        inbox.await_outcome()
        assert [result.first for result in inbox.results] == list(range(total + 1))
    other.close(1)


def test_contract_attach_finds_moved_calls_pending(platform: Platform, caller: Caller) -> None:
    """A call whose input record is gone, but that was moved, is pending."""
    call_id, _ = caller.accepted()
    moved = Result(call_id, TOKEN, ResultKind.MOVED, moved_to="elsewhere/0")
    platform.append_result(caller.spec.name, moved)
    for partition in range(2):
        platform.trim(platform.topics.invocations(caller.spec.name), partition)
    other = platform.transport()
    assert other.attach(caller.spec.name, call_id, Inbox().on_results, WAIT_S) is AttachState.PENDING
    other.close(1)


def test_contract_attach_finds_calls_among_the_retries(platform: Platform, caller: Caller) -> None:
    """A call whose only record waits in the retries topic is pending; its `id` header tells."""
    call_id, _ = caller.accepted()
    (record,) = platform.inputs(caller.spec.name)
    platform.append(platform.topics.retries(caller.spec.name), 3, record.value, record.headers)
    for partition in range(2):
        platform.trim(platform.topics.invocations(caller.spec.name), partition)
    other = platform.transport()
    assert other.attach(caller.spec.name, call_id, Inbox().on_results, WAIT_S) is AttachState.PENDING
    other.close(1)


def test_contract_attach_tells_unknown_from_expired(platform: Platform, caller: Caller) -> None:
    """Without any record a young id is unknown and one older than the result TTL has expired."""
    inbox = Inbox()
    state = caller.transport.attach(
        caller.spec.name, caller.mint(before_ms=3_600_000), inbox.on_results, WAIT_S
    )
    assert state is AttachState.UNKNOWN
    old = caller.mint(before_ms=RESULT_TTL_MS + 60_000)
    state = caller.transport.attach(caller.spec.name, old, inbox.on_results, WAIT_S)
    assert state is AttachState.EXPIRED
    platform.append_result(caller.spec.name, outcome(old))
    call_id, known = caller.accepted()
    platform.append_result(caller.spec.name, outcome(call_id))
    known.await_outcome()
    assert inbox.results == []


def test_contract_receivers_of_one_call_are_forgotten_apart(platform: Platform, caller: Caller) -> None:
    """Two receivers of a call get all; one that is forgotten by name leaves the other in place."""
    call_id, first = caller.accepted()
    second = Inbox()
    caller.transport.attach(caller.spec.name, call_id, second.on_results, WAIT_S)
    platform.append_result(caller.spec.name, chunk(call_id, 0, b"a"))
    second.await_that(lambda: len(second.results) == 1)
    first.await_that(lambda: len(first.results) == 1)
    caller.transport.forget(call_id, second.on_results)
    platform.append_result(caller.spec.name, outcome(call_id, first=1))
    first.await_outcome()
    assert len(second.results) == 1


# --- what is deployed, and time ---


def test_contract_directory_shows_functions_and_containers(platform: Platform, function: str) -> None:
    """Specs that are written later are waited for and come back as they were."""
    transport = platform.transport()
    directory = transport.directory
    assert directory.function(function) is None
    spec = function_spec(function, container=f"c-{function}")
    container = ContainerSpec(f"c-{function}", 3, (function,), "0" * 64, max_instances=2)
    platform.deploy(spec, container)
    assert directory.wait(lambda: directory.function(function) is not None, WAIT_S)
    assert directory.function(function) == spec
    assert spec in directory.functions()
    assert directory.container(container.name) == container
    assert container in directory.containers()
    assert not directory.wait(lambda: directory.function("nobody") is not None, 0.05)
    transport.close(1)


def test_contract_directory_shows_live_instances(platform: Platform, function: str) -> None:
    """Instances seen within ten seconds are live; others, and other containers', are not shown."""
    transport = platform.transport()
    directory = transport.directory
    now_ms = platform.now_ms()
    live = InstanceStatus(function, "i1", "ready", "h", 1, 1, (function,), seen_ms=now_ms)
    platform.put_instance(live)
    platform.put_instance(replace(live, instance="i2", seen_ms=now_ms - 11_000))
    platform.put_instance(replace(live, container="", instance=f"d-{function}"))
    assert directory.wait(lambda: len(directory.instances(function)) == 1, WAIT_S)
    assert directory.instances(function) == [live]
    deployers = directory.wait(
        lambda: f"d-{function}" in [status.instance for status in directory.instances("")], WAIT_S
    )
    assert deployers
    assert {status.instance for status in directory.instances()} >= {"i1", f"d-{function}"}
    transport.close(1)


def test_contract_time_is_the_brokers(platform: Platform, caller: Caller) -> None:
    """`now_ms` is the broker's clock, and records appended now carry it."""
    before = caller.transport.now_ms()
    caller.accepted()
    (record,) = platform.inputs(caller.spec.name)
    assert before - 50 <= record.appended_ms <= caller.transport.now_ms() + 50
