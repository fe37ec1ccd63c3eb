"""The frames between a coordinator and its executors: length-prefixed MessagePack, many records per write.

One write is `u32 little-endian length` + MessagePack array of records; a record is an array whose first item
is its kind. Kinds are numbers, positions are fixed; see the table of each kind below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum, StrEnum
from typing import Any, Final

import msgspec

MAX_WRITE_BYTES: Final = 64 * 1024 * 1024
"""A longer length prefix means the peer is broken."""

FLOOD_OVER: Final = "(output was too fast up to here)"
"""Text of a LOG record that only says how many lines were dropped: no other one came that could."""


class ToExecutor(IntEnum):
    """Records a coordinator sends.

    HELLO      [0, settings: dict]           once, first: namespace, function, kind, module, qualname, bundle
                                             (folder), slots, container, instance, version, chunk_credit
                                             (chunks a run may have unacknowledged), exchange (folder of
                                             large payloads, "" for none)
    RUN        [1, run_id, call_id, attempt, delivery, deadline_ms, value]
    CREDIT     [2, run_id, chunks]
    INTERRUPT  [3, run_id]                    cancel an async attempt; nothing is promised for a sync one
    STOP       [4]                            finish what runs, then exit 0
    CLOCK      [5, offset_ms]                 broker time minus executor wall clock
    ACCEPTED   [6, ref, error | nil]          Kafka's answer to the record of a CALL or CANCEL
    RESULTS    [7, ref, [result, ...]]        records of a nested call in log order, as in the results topic
    ANSWER     [8, ask, error | nil, value]   to an ASK
    SPECS      [9, [[what, name, spec | nil], ...]]  functions and containers that are new, changed or gone
    UNPARK     [10, run_id]                   a run that asked to go on has its slot again
    error is [name of a class in pelton.errors, message]
    """

    HELLO = 0
    RUN = 1
    CREDIT = 2
    INTERRUPT = 3
    STOP = 4
    CLOCK = 5
    ACCEPTED = 6
    RESULTS = 7
    ANSWER = 8
    SPECS = 9
    UNPARK = 10


class FromExecutor(IntEnum):
    """Records an executor sends.

    READY      [0, pid]                       user code is loaded
    BROKEN     [1, failure]                   user code could not be loaded; the executor exits
    CHUNKS     [2, run_id, [payload, ...]]
    OUTCOME    [3, run_id, payload | nil, failure | nil, submitted_ms]
    POISON     [4, run_id, reason]            the body cannot be read
    LOG        [5, call_id | nil, attempt, source, level, logger, text, fields, at_ms, dropped]
    CALL       [6, ref, invocation]           a nested call; `ref` names it in ACCEPTED, RESULTS and FORGET
    FORGET     [7, ref]                       no more results of it
    ASK        [8, ask, question, arguments]  answered by ANSWER; the questions are in `Question`
    PARK       [9, run_id]                    a run waits for calls it made: its slot is free meanwhile
    UNPARK     [10, run_id]                   it wants to go on; UNPARK says when it may
    CANCEL     [11, ref, call_id, reason]     cancel a call and all below it; answered by ACCEPTED
    PAUSE      [12, ref]                      no more results of a call until RESUME is asked
    failure is [type, message, traceback, code, retriable, after_ms]; after_ms is -1 for what the policy says
    """

    READY = 0
    BROKEN = 1
    CHUNKS = 2
    OUTCOME = 3
    POISON = 4
    LOG = 5
    CALL = 6
    FORGET = 7
    ASK = 8
    PARK = 9
    UNPARK = 10
    CANCEL = 11
    PAUSE = 12


class Question(StrEnum):
    """What an executor may ask of its coordinator.

    SPECS      []                               send what is deployed now, and every change from now on
    PREPARE    [function]                       the reply partition for calls of it
    ATTACH     [ref, function, call_id, seconds]  replay a call as RESULTS; the value is its state
    RESUME     [ref, seconds]                   more of a paused call as RESULTS; whether it has caught up
    INSTANCES  [container | nil]                statuses of live instances
    KEEP       [file, claim]                    make an object of a file in the folder of exchange
    FETCH      [file, claim]                    put an object into the folder of exchange
    """

    SPECS = "specs"
    PREPARE = "prepare"
    ATTACH = "attach"
    RESUME = "resume"
    INSTANCES = "instances"
    KEEP = "keep"
    FETCH = "fetch"


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def encode_write(records: Sequence[Sequence[Any]]) -> bytes:
    """One write: the length prefix and the records."""
    body = _encode(records)
    return len(body).to_bytes(4, "little") + body


class FrameReader:
    """Cuts a byte stream into records."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[list[Any]]:
        """The records that are complete with these bytes.

        Raises:
            ValueError: the peer sent something that is no frame; nothing more can be read from it.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        complete: list[list[Any]] = []
        while len(buffer) - start >= 4:
            length = int.from_bytes(buffer[start : start + 4], "little")
            if length > MAX_WRITE_BYTES:
                raise ValueError(f"a frame of {length} bytes is over the limit of {MAX_WRITE_BYTES}")
            end = start + 4 + length
            if len(buffer) < end:
                break
            complete += _read_records(bytes(buffer[start + 4 : end]))
            start = end
        del buffer[:start]
        return iter(complete)


def _read_records(body: bytes) -> list[list[Any]]:
    """The records of one write: arrays that start with a kind."""
    try:
        records = _decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"a frame that cannot be read: {error}") from error
    if type(records) is not list:
        raise ValueError(f"a frame that holds a {type(records).__name__} instead of records")
    for record in records:
        if type(record) is not list or not record or type(record[0]) is not int:
            raise ValueError("a frame with a record that does not start with its kind")
    return records
