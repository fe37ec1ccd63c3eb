"""What `context()` tells user code, and where it refuses."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from datetime import UTC, datetime

import pytest

from pelton.core.call import call_id_text, mint_call_id
from pelton.runtime.context import Attempt, Context, context, current_attempt

CALL_ID = mint_call_id(1_700_000_000_000, 5, bytes(range(8)))


def attempt(deadline_ms: int = 0) -> Attempt:
    """An attempt as an executor makes it."""
    return Attempt(CALL_ID, 2, 3, "classify", deadline_ms, "instance-1")


def in_attempt(deadline_ms: int = 0) -> Context:
    """What `context()` says inside of an attempt."""

    def inside() -> Context:
        current_attempt.set(attempt(deadline_ms))
        return context()

    return contextvars.copy_context().run(inside)


def test_context_names_the_attempt_in_public_types() -> None:
    """Ids are text and the deadline is an aware instant in UTC."""
    seen = in_attempt(deadline_ms=1_700_000_001_500)
    assert seen == Context(
        call_id=call_id_text(CALL_ID),
        attempt=2,
        delivery=3,
        function="classify",
        deadline=datetime(2023, 11, 14, 22, 13, 21, 500_000, tzinfo=UTC),
        instance="instance-1",
    )


def test_without_a_deadline_there_is_none() -> None:
    """Zero in the frame means never, not 1970."""
    assert in_attempt().deadline is None


def test_outside_of_a_call_context_refuses() -> None:
    """There is nothing true to answer at import time or in a caller's process."""
    with pytest.raises(RuntimeError, match="outside of a call"):
        context()


def test_tasks_and_to_thread_inherit_the_context_and_plain_threads_do_not() -> None:
    """Context variables carry it; a plain thread starts empty and is refused."""

    async def inside() -> tuple[Context, Context]:
        current_attempt.set(attempt())

        async def child() -> Context:
            return context()

        return await asyncio.create_task(child()), await asyncio.to_thread(context)

    in_task, in_thread = asyncio.run(inside())
    assert in_task == in_thread == in_attempt()
    refused: list[str] = []

    def plain() -> None:
        try:
            context()
        except RuntimeError as error:
            refused.append(str(error))

    def start() -> None:
        current_attempt.set(attempt())
        thread = threading.Thread(target=plain)
        thread.start()
        thread.join()

    contextvars.copy_context().run(start)
    assert len(refused) == 1
