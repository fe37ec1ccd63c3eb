"""How exceptions of every kind become bounded failures."""

from __future__ import annotations

import pytest

from pelton.runtime.failures import MAX_MESSAGE_BYTES, MAX_TRACEBACK_BYTES, bounded, failure_of


class Mute(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Brutal(Exception):
    """An exception whose text is worse than an exception."""

    def __str__(self) -> str:
        raise SystemExit(3)


def raised(error: BaseException) -> BaseException:
    """The exception with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def recurse(n: int) -> int:
    return recurse(n + 1) + 1


def test_a_failure_names_type_message_and_place() -> None:
    """A caller sees where in user code it happened; builtins go without their module."""
    failure = failure_of(raised(ValueError("bad word")))
    assert (failure.type, failure.message, failure.code) == ("ValueError", "bad word", "UNKNOWN")
    assert not failure.retriable
    assert "in raised" in failure.traceback
    assert failure.traceback.rstrip().endswith("ValueError: bad word")
    assert failure_of(Mute()).type == f"{__name__}.Mute"


@pytest.mark.parametrize("error", [Mute(), Brutal()])
def test_an_exception_whose_text_fails_still_becomes_a_failure(error: Exception) -> None:
    """`str()` of an exception is user code and may do anything."""
    failure = failure_of(raised(error))
    assert "str() of the exception raised" in failure.message
    assert failure.traceback


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(2),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(1),
        MemoryError(),
        BaseException("x"),
    ],
)
def test_exceptions_that_are_no_errors_become_failures(error: BaseException) -> None:
    """Whatever was raised has a type and a traceback."""
    failure = failure_of(raised(error))
    assert failure.type == type(error).__name__
    assert failure.type in failure.traceback


def test_messages_and_tracebacks_are_bounded_in_bytes_and_keep_their_ends() -> None:
    """A failure travels in headers and results, so megabytes of message must not; the end names the cause."""
    failure = failure_of(raised(ValueError("a" + "é" * 1_000_000 + "z")))
    assert len(failure.message.encode()) <= MAX_MESSAGE_BYTES
    assert failure.message.startswith("a")
    assert failure.message.endswith("z")
    assert "bytes left out" in failure.message
    assert len(failure.traceback.encode()) <= MAX_TRACEBACK_BYTES


def test_a_recursion_without_end_is_bounded() -> None:
    """A thousand frames are not a thousand lines."""
    with pytest.raises(RecursionError) as caught:
        recurse(0)
    failure = failure_of(caught.value)
    assert failure.type == "RecursionError"
    assert len(failure.traceback.encode()) <= MAX_TRACEBACK_BYTES
    assert failure.traceback.count("recurse") < 20


def test_causes_are_told() -> None:
    """`raise ... from ...` keeps its first half."""
    outer = RuntimeError("outer")
    outer.__cause__ = raised(KeyError("inner"))
    failure = failure_of(raised(outer))
    assert "KeyError: 'inner'" in failure.traceback
    assert "direct cause" in failure.traceback


def test_text_that_is_no_utf8_becomes_visible_escapes() -> None:
    """Lone surrogates would make the frame unwritable."""
    failure = failure_of(raised(OSError("name \udcff")))
    assert failure.message == "name \\udcff"
    failure.traceback.encode()


@pytest.mark.parametrize("limit", [64, 100, 101, 102, 103])
def test_bounded_text_never_exceeds_its_limit_nor_breaks_characters(limit: int) -> None:
    """Cutting in the middle of a character drops it."""
    text = bounded("ü" * 500, limit)
    assert len(text.encode()) <= limit
    assert set(text) - set("ü") <= set("\n. bytes left out 0123456789")
