"""Calls the functions of greet.py from an ordinary program, in the ways there are."""

from __future__ import annotations

import asyncio

from greet import countdown, greet

import pelton


def main() -> None:
    """Calls as a plain program does."""
    print(greet("Ada"))  # runs on a worker, blocks here

    future = greet.async_call("Grace")
    future.accepted.result(timeout=30)  # Kafka has the record: the call outlives this program
    print(future.result(timeout=30))

    with countdown(3) as numbers:  # each number arrives when it is yielded
        print(*numbers)

    for greeting in greet.map(["Alan", "Barbara"]):  # many calls open at a time, in order
        print(greeting)

    by_name = pelton.function_ref("greet")  # needs no code of the function
    print(by_name("Edsger"))

    again = by_name.attach(future.call_id)  # from any process, for 24 hours
    print(again.result(timeout=30))


async def main_async() -> None:
    """Calls from asyncio: futures can be awaited, streams iterated."""
    print(await greet.async_call("Margaret"))
    async for number in countdown(2):
        print(number)


if __name__ == "__main__":
    main()
    asyncio.run(main_async())
