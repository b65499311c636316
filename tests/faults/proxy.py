"""A TCP proxy that breaks what passes through it, on request.

    with FaultProxy(server_port) as proxy:
        proxy.set(Fault("cut", "up", after_bytes=700))

A site that is told the proxy's port has its whole link to the server in the test's hands. One fault
is in force at a time, on connections that are there and on those to come. Counting starts when it
is set, over all connections. ``cut``, ``half-close``, ``duplicate`` and ``garbage`` strike once.

Not covered: loss and reordering of packets, which TCP hides from both ends.
"""

import asyncio
import os
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Self

Kind = Literal[
    "none",
    "delay",  # by delay_s
    "bandwidth",  # of bytes_per_s
    "stall",  # nothing passes until the fault is lifted, as across a network that is cut
    "cut",  # both ends get a reset
    "half-close",  # the receiver sees an end, the sender goes on
    "duplicate",  # a block twice
    "garbage",  # random bytes within a block
    "refuse",  # every connection is reset at once, those that are there too
]
Way = Literal["up", "down", "both"]

_BLOCK_BYTES = 65536
_SLICE_S = 0.05  # between two pieces of a block under ``bandwidth``
_STOP_S = 5.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER without lingering


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, on bytes from the site (``up``), to it (``down``) or both."""

    kind: Kind
    way: Way = "both"
    after_bytes: int = 0
    delay_s: float = 0.0
    bytes_per_s: float = 0.0


NONE = Fault("none")


@dataclass(eq=False)
class _Pair:
    """The two ends of one connection."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None

    def reset(self) -> None:
        for end in (self.near, self.far):
            if end is not None:
                with suppress(OSError):  # closed already
                    raw = end.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.transport.abort()


@dataclass
class FaultProxy:
    """Forwards 127.0.0.1:``port`` to ``target``, in a thread of its own."""

    target: int
    host: str = "127.0.0.1"
    port: int = 0
    has_struck: threading.Event = field(default_factory=threading.Event)
    connections: int = 0
    bytes_passed: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    _fault: Fault = NONE
    _since: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    _pairs: set[_Pair] = field(default_factory=set)

    def __enter__(self) -> Self:
        """Listen."""
        self._loop, is_up = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(is_up,), daemon=True)
        self._thread.start()
        is_up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        """Reset what is there and listen no more."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def set(self, fault: Fault) -> None:
        """Put ``fault`` in force."""
        is_in_force = threading.Event()
        self.has_struck.clear()
        self._loop.call_soon_threadsafe(self._put, fault, is_in_force)
        is_in_force.wait(10)

    def lift(self) -> None:
        """Let everything pass again; what was held back goes on its way."""
        self.set(NONE)

    def _run(self, is_up: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(is_up))
        self._loop.close()

    async def _serve(self, is_up: threading.Event) -> None:
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        server = await asyncio.start_server(self._connect, self.host, self.port)
        self.port = int(server.sockets[0].getsockname()[1])
        is_up.set()
        await self._stop.wait()
        server.close()
        self._put(Fault("refuse"), threading.Event())
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:  # the resets end them
            await asyncio.wait(others, timeout=_STOP_S)

    def _put(self, fault: Fault, is_in_force: threading.Event) -> None:
        self._fault = fault
        self._since = {"up": 0, "down": 0}
        self._changed.set()
        self._changed = asyncio.Event()
        if fault.kind == "refuse":
            for pair in tuple(self._pairs):
                pair.reset()
        is_in_force.set()

    async def _connect(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        pair = _Pair(near)
        self.connections += 1
        if self._fault.kind == "refuse":
            pair.reset()
            return
        self._pairs.add(pair)
        try:
            back, pair.far = await asyncio.open_connection(self.host, self.target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump("up", reader, pair.far, pair))
                both.create_task(self._pump("down", back, near, pair))
        except* OSError:  # either end went away
            pair.reset()
        finally:
            self._pairs.discard(pair)
            near.close()

    async def _pump(
        self, way: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: _Pair
    ) -> None:
        try:
            while data := await source.read(_BLOCK_BYTES):
                if not await self._pass(way, data, sink, pair):
                    return
                self.bytes_passed[way] += len(data)
            await self._unless_stalled(way)
        finally:
            with suppress(OSError, RuntimeError):
                sink.write_eof()

    async def _pass(self, way: str, data: bytes, sink: asyncio.StreamWriter, pair: _Pair) -> bool:
        """Write a block as the fault has it; False once this direction is over."""
        await self._unless_stalled(way)
        fault = self._fault
        if fault.way not in (way, "both"):
            fault = NONE
        before = max(0, fault.after_bytes - self._since[way])
        self._since[way] += len(data)
        strikes = len(data) > before
        if fault.kind == "delay":
            await asyncio.sleep(fault.delay_s)
        elif fault.kind == "bandwidth":
            return await self._drip(data, sink, fault)
        elif strikes and fault.kind in ("cut", "half-close"):
            sink.write(data[:before])
            await sink.drain()
            self._strike()
            if fault.kind == "cut":
                pair.reset()
            return False
        elif strikes and fault.kind == "duplicate":
            data += data
            self._strike()
        elif strikes and fault.kind == "garbage":
            data = data[:before] + os.urandom(37) + data[before:]
            self._strike()
        sink.write(data)
        await sink.drain()
        return True

    async def _drip(self, data: bytes, sink: asyncio.StreamWriter, fault: Fault) -> bool:
        size = max(1, int(fault.bytes_per_s * _SLICE_S))
        while data and self._fault is fault:
            sink.write(data[:size])
            await sink.drain()
            data = data[size:]
            await asyncio.sleep(size / fault.bytes_per_s)
        sink.write(data)
        await sink.drain()
        return True

    async def _unless_stalled(self, way: str) -> None:
        while self._fault.kind == "stall" and self._fault.way in (way, "both"):
            await self._changed.wait()

    def _strike(self) -> None:
        self._fault = NONE
        self.has_struck.set()
