"""A network link that can be slow, narrow, reset or half-open, and a broker that is reached through it."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from pelton.transport.kafka.readiness import cluster_ready
from pelton_platform import process
from pelton_platform.embedded import resolve
from pelton_platform.embedded.properties import broker_properties
from pelton_platform.embedded.storage import new_id
from support.chaos_cluster import Node
from support.worker_instance import wait_until

HOST: Final = "127.0.0.1"
_CHUNK: Final = 16 * 1024
_QUEUED: Final = 64
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends a reset instead of an orderly end."""


class _Direction:
    """One direction of all connections of a link, which share its width.

    Args:
        link: what it belongs to.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._free_at = 0.0

    def due(self, size: int) -> float:
        """When so many bytes that enter now have left, in the time of the running loop."""
        now = asyncio.get_running_loop().time()
        rate = self._link.bytes_per_s
        self._free_at = max(self._free_at, now) + (size / rate if rate else 0.0)
        return self._free_at + self._link.delay_s


class _Connection:
    """Two sockets and what carries bytes between them.

    Attributes:
        silent: nothing is carried any more, and nobody is told.
    """

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.silent = False
        self._writers = (near, far)

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: _Direction
    ) -> None:
        """Carries bytes in one direction until either side ends."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED)

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(due - asyncio.get_running_loop().time())
                if self.silent:
                    continue
                writer.write(data)
                await writer.drain()
                if not data:
                    return

        async def take() -> None:
            while data := await reader.read(_CHUNK):
                await queue.put((way.due(len(data)), data))
            await queue.put((way.due(0), b""))

        await asyncio.gather(deliver(), take())

    def reset(self) -> None:
        """Ends both sides with a reset."""
        for writer in self._writers:
            with suppress(OSError):
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Link:
    """Carries TCP connections from a port of its own to another one, as badly as it is told to.

    Attributes:
        port: where to connect to.
        delay_s: how much later each byte arrives, in each direction.
        bytes_per_s: how many bytes pass in a second, in each direction; 0 for all.
        carried: connections that were made so far.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self.carried = 0
        self._target = target
        self._ways = (_Direction(self), _Direction(self))
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()
        assert self._ready.wait(5)

    @property
    def alive(self) -> int:
        """How many connections it carries now."""
        return self._call(lambda connection: None)

    def smooth(self) -> None:
        """Carries at once and without bounds again."""
        self.delay_s = self.bytes_per_s = 0.0

    def reset(self) -> int:
        """Ends all connections with a reset; how many there were."""
        return self._call(_Connection.reset)

    def half_open(self) -> int:
        """Carries nothing more of the connections there are, and ends none of them; new ones are carried."""

        def silence(connection: _Connection) -> None:
            connection.silent = True

        return self._call(silence)

    def close(self) -> None:
        """Ends everything."""
        self.reset()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _call(self, fault: Callable[[_Connection], None]) -> int:
        async def do() -> int:
            hit = [each for each in self._connections if not each.silent]
            for connection in hit:
                fault(connection)
            return len(hit)

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._accept, HOST, self.port))
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        self.carried += 1
        connection = _Connection(writer, far_writer)
        self._connections.add(connection)
        out, back = self._ways
        carriers = [
            asyncio.ensure_future(connection.carry(reader, far_writer, out)),
            asyncio.ensure_future(connection.carry(far_reader, writer, back)),
        ]
        # The one that ends first ends the connection, as its peer does.
        await asyncio.wait(carriers, return_when=asyncio.FIRST_COMPLETED)
        for carrier in carriers:
            carrier.cancel()
        await asyncio.gather(*carriers, return_exceptions=True)
        self._connections.discard(connection)
        writer.close()
        far_writer.close()


class LinkedBroker:
    """A broker with two doors: one directly, and one that is advertised as the end of a link.

    Attributes:
        link: what the second door is reached through.
        direct: address of the first.
        through_link: address of the second.
    """

    def __init__(self, folder: Path) -> None:
        control, first, second, end = process.free_ports(4)
        self.direct, self.through_link = f"{HOST}:{first}", f"{HOST}:{end}"
        properties = broker_properties(host=HOST, port=first, controller_port=control, overrides={})
        properties["controller.quorum.voters"] = f"1@{HOST}:{control}"
        properties["listeners"] += f",LINK://{HOST}:{second}"
        properties["advertised.listeners"] += f",LINK://{HOST}:{end}"
        properties["listener.security.protocol.map"] += ",LINK:PLAINTEXT"
        self._node = Node(resolve(), folder, 1, properties)
        self._node.format(new_id())
        self.link = Link(end, second)

    def start(self) -> None:
        """Starts it and waits until both doors answer."""
        self._node.start()
        for address in (self.direct, self.through_link):
            wait_until(partial(cluster_ready, address, 1.0), 60, f"{address} answers")

    def close(self) -> None:
        """Ends it."""
        self._node.kill()
        self.link.close()


@contextmanager
def linked_broker(folder: Path) -> Iterator[LinkedBroker]:
    """A broker behind a link, ended with the block."""
    broker = LinkedBroker(folder)
    try:
        broker.start()
        yield broker
    finally:
        broker.close()
