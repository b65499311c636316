"""How long a round takes on the link and how many bytes it moves, beside plain sockets.

Sites are processes of their own, over real TLS on 127.0.0.1; they answer at once with a vector of
the same size, so what is timed is the link alone: pack, serialise, hash, encrypt, send, and back,
with every check of a real round. Plain sockets move the same messages between the same processes,
the two alternating round by round.

Not covered: a network (loopback has neither latency nor loss), training.
"""

import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from flwr.app import Message, RecordDict

from client.session import LinkConfig, run
from common import log
from common.flower import become_server, message_to_bytes
from common.link.codecs import CODECS, Vector
from common.link.identity import node_id
from common.link.payload import message_cap, pack, unpack
from server.grid import LinkGrid
from server.link import LinkServer
from simulations.benchmarks import sockets
from simulations.loopback import HOST, make_loopback

_JOB = "0" * 64
_CODEC = CODECS["fp32"]
_WARM_UP_ROUNDS = 2
_START_TIMEOUT_S = 60.0
_ROUND_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Row:
    """The one tensor of a benchmark's table."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class OneTensor:
    """A manifest table with one tensor."""

    size: int

    @property
    def tensors(self) -> tuple[Row, ...]:
        """The table's rows."""
        return (Row("adapter", (self.size,)),)

    def to_json(self) -> bytes:
        """Its bytes on the wire."""
        return f'{{"tensors":[{{"name":"adapter","shape":[{self.size}]}}]}}'.encode()


@dataclass(frozen=True, slots=True)
class Case:
    """How many sites move how many numbers, and how often."""

    sites: int
    parameters: int
    rounds: int


CASES = {
    "2_sites": Case(sites=2, parameters=100, rounds=200),
    "4_sites_3m": Case(sites=4, parameters=3_000_000, rounds=15),
}


def benchmark() -> dict[str, object]:
    """Every case: medians, spreads and all raw times, in seconds."""
    log.configure(level="error")
    become_server()
    result: dict[str, object] = {"cores": os.cpu_count(), "python_processes": "one a site"}
    for name, case in CASES.items():
        measured = measure(case)
        result[f"round_s_{name}"] = measured["link_round_s"]
        result[name] = measured
    return result


def measure(case: Case) -> dict[str, object]:
    """One case, link and plain sockets in turn."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = stack.enter_context(_bench(case, Path(folder)))
        times: dict[str, list[float]] = {"link": [], "sockets": []}
        for number in range(_WARM_UP_ROUNDS + case.rounds):
            for variant, play in (("link", bench.link_round), ("sockets", bench.socket_round)):
                start = time.perf_counter()
                play(number)
                times[variant].append(time.perf_counter() - start)
        timed = {variant: values[_WARM_UP_ROUNDS:] for variant, values in times.items()}
        return (
            {"sites": case.sites, "parameters": case.parameters}
            | {
                key: value
                for variant, values in timed.items()
                for key, value in _summary(variant, values).items()
            }
            | bench.bytes_moved()
        )


def _summary(variant: str, values: list[float]) -> dict[str, object]:
    deciles = statistics.quantiles(values, n=10)
    return {
        f"{variant}_round_s": statistics.median(values),
        f"{variant}_p10_s": deciles[0],
        f"{variant}_p90_s": deciles[-1],
        f"{variant}_all_s": [round(value, 6) for value in values],
    }


@dataclass(frozen=True, slots=True)
class _Bench:
    """Everything that is running for one case."""

    case: Case
    grid: LinkGrid
    relayed: LinkGrid
    relay: sockets.CountingRelay
    connections: tuple[socket.socket, ...]
    table: OneTensor
    vector: Vector

    def link_round(self, number: int) -> None:
        """Pack once, ask every site, check every reply."""
        self._round(self.grid, _names(self.case), number)

    def socket_round(self, number: int) -> None:
        """The same messages and threads, with nothing around them."""
        del number
        body = message_to_bytes(_message(self.vector, self.table, "site0", 0))
        threads = [
            threading.Thread(target=_exchange, args=(connection, body))
            for connection in self.connections
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def bytes_moved(self) -> dict[str, object]:
        """Bytes of one round of one site: the message, and what a wire carries for it."""
        up, down = self.relay.bytes_up, self.relay.bytes_down
        self._round(self.relayed, ["relayed"], 0)
        time.sleep(0.2)  # the last acknowledgements
        body = len(message_to_bytes(_message(self.vector, self.table, "relayed", 0)))
        payload = self.vector.nbytes
        return {
            "payload_bytes": payload,
            "message_bytes": body,
            "link_bytes_down": self.relay.bytes_down - down,
            "link_bytes_up": self.relay.bytes_up - up,
            "sockets_bytes_down": body + 8,
            "sockets_bytes_up": body + 8,
        }

    def _round(self, grid: LinkGrid, names: list[str], number: int) -> None:
        records = RecordDict({**pack(self.vector, self.table, _CODEC)})
        messages = [Message(records, node_id(n), "train", group_id=str(number)) for n in names]
        replies = 0
        for reply in grid.send_and_receive(messages, timeout=_ROUND_TIMEOUT_S):
            unpack(reply.content, self.table, _CODEC)
            replies += 1
        if replies != len(names):
            raise RuntimeError(f"replies must be {len(names)}, got {replies}")


def _message(vector: Vector, table: OneTensor, site: str, number: int) -> Message:
    records = RecordDict({**pack(vector, table, _CODEC)})
    return Message(records, node_id(site), "train", group_id=str(number))


def _exchange(connection: socket.socket, body: bytes) -> None:
    sockets.send(connection, body)
    sockets.receive(connection)


def _names(case: Case) -> list[str]:
    return [f"site{number}" for number in range(case.sites)]


@contextmanager
def _bench(case: Case, folder: Path) -> Iterator[_Bench]:
    loopback = make_loopback(folder)
    table = OneTensor(case.parameters)
    cap = message_cap(table, _CODEC)
    vector = np.random.default_rng(7).standard_normal(case.parameters).astype(np.float32)
    server = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster)
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        listener = stack.enter_context(closing(socket.create_server((HOST, 0))))
        port = int(listener.getsockname()[1])
        relay = sockets.CountingRelay(HOST, server.port)
        stack.callback(relay.close)
        names = _names(case)
        configs = [loopback.enroll(name, server.port) for name in names]
        configs.append(loopback.enroll("relayed", relay.port))
        stack.callback(_end, [_spawn(config, cap, port) for config in configs])
        connections = tuple(stack.enter_context(closing(_accept(listener))) for _ in configs)
        grid = LinkGrid(server, names, cap, _JOB)
        relayed = LinkGrid(server, ["relayed"], cap, _JOB)
        _wait(lambda: len(grid.get_node_ids()) == case.sites and bool(relayed.get_node_ids()))
        yield _Bench(case, grid, relayed, relay, connections[: case.sites], table, vector)


def _accept(listener: socket.socket) -> socket.socket:
    listener.settimeout(_START_TIMEOUT_S)
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("sites must connect within a minute, got fewer")
        time.sleep(0.01)


def _spawn(config: LinkConfig, cap: int, port: int) -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(
        target=_be_site, args=(config, cap, port), daemon=True
    )
    process.start()
    return process


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
        process.join(10)


def _be_site(config: LinkConfig, cap: int, port: int) -> None:
    """A site that answers with what it was sent, on the link and on a plain socket."""
    log.configure(level="error")
    threading.Thread(target=_echo, args=(port,), daemon=True).start()

    def handle(message: Message) -> Message:
        size = message.content.array_records["arrays"]["adapter"].shape[0]
        table = OneTensor(size)
        vector = unpack(message.content, table, _CODEC)
        return Message(RecordDict({**pack(vector, table, _CODEC)}), reply_to=message)

    run(lambda: config, handle, lambda job: cap, threading.Event(), lambda state: None)


def _echo(port: int) -> None:
    connection = socket.create_connection((HOST, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while True:
            sockets.send(connection, sockets.receive(connection))
    except ConnectionError:
        return
