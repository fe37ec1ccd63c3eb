"""A FastAPI application whose handlers call functions: awaited, streamed, left when the client leaves.

Run it with `uvicorn fastapi_app:app`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from texts import letters, shout

app = FastAPI()


@app.get("/shout")
async def shout_it(text: str) -> dict[str, str]:
    """Awaits a call; the event loop serves others meanwhile."""
    return {"text": await shout.async_call(text)}


@app.post("/jobs")
async def begin(text: str) -> dict[str, str]:
    """Answers as soon as the call is on Kafka: from here on it survives this server."""
    future = shout.async_call(text)
    await future.accepted
    return {"job": future.call_id}


@app.get("/jobs/{job}")
async def finish(job: str) -> dict[str, str]:
    """Any worker of this server, and any other process, can wait for the result."""
    return {"text": await shout.attach(job)}


@app.get("/letters")
async def spell(word: str) -> StreamingResponse:
    """Passes a stream on; a client that leaves early cancels the call behind it."""

    async def lines() -> AsyncIterator[str]:
        async with letters(word) as stream:
            async for letter in stream:
                yield f"{letter}\n"

    return StreamingResponse(lines(), media_type="text/plain")
