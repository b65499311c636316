"""Many sites on one server: what a round takes and holds, and whether one slow site costs the rest.

All sites are sessions of the real client over real TLS on 127.0.0.1, in two processes of their own,
so that the memory measured is the server's. They answer at once with a vector of the same size.
Three rounds alternate: of some sites, of all, and of all while one more site has taken an order and
reads nothing of it. Every number of every reply is checked.

Not covered: a network, training, sites that share no processor with the server.
"""

import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import psutil
from flwr.app import Message, RecordDict
from rich.console import Console
from rich.progress import track

from client.session import LinkConfig, State, run
from common import log
from common.flower import become_server
from common.link import framing
from common.link.channel import SERVICE, SESSION, Credentials, open_channel
from common.link.codecs import CODECS, Vector
from common.link.identity import node_id
from common.link.payload import message_cap, pack, unpack
from server.grid import LinkGrid
from server.link import LinkServer
from simulations.benchmarks.link import OneTensor
from simulations.loopback import HOST, make_loopback

_JOB = "0" * 64
_CODEC = CODECS["fp32"]
_SLOW = "slow"
_PROCESSES = 2
WARM_UP_ROUNDS = 2
_START_TIMEOUT_S = 120.0
_ROUND_TIMEOUT_S = 300.0
_SAMPLE_S = 0.01
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """How many sites, of whom ``few`` make the small round, move how many numbers how often."""

    sites: int
    few: int
    parameters: int
    rounds: int


CASES = {
    "200_sites": Case(sites=200, few=20, parameters=1000, rounds=15),
    "200_sites_100k": Case(sites=200, few=20, parameters=100_000, rounds=8),
}


def benchmark() -> dict[str, object]:
    """Every case, in seconds and MiB."""
    log.configure(level="error")
    become_server()
    processes = f"{_PROCESSES} for the sites, 1 for the server"
    result: dict[str, object] = {"cores": os.cpu_count(), "python_processes": processes}
    return result | {name: measure(case) for name, case in CASES.items()}


def measure(case: Case, *, progress: str = "link-scale") -> dict[str, object]:
    """One case: medians and deciles of each kind of round, the server's memory, who waits longest.

    Raises:
        RuntimeError: a reply is missing or wrong.
    """
    with tempfile.TemporaryDirectory() as folder, _bench(case, Path(folder)) as bench:
        rounds = range(WARM_UP_ROUNDS + case.rounds)
        for number in track(rounds, progress, console=Console(stderr=True), transient=True):
            for kind in ("few", "all", "all_beside_slow"):
                bench.play(kind, number)
        return {
            "sites": case.sites,
            "few": case.few,
            "parameters": case.parameters,
            **bench.summary(),
        }


@dataclass(slots=True)
class _Bench:
    """What is running for one case, and what was measured."""

    case: Case
    server: LinkServer
    slow: LinkConfig
    table: OneTensor
    vector: Vector
    times: dict[str, list[float]] = field(default_factory=dict)
    peaks: list[float] = field(default_factory=list)
    rests: list[float] = field(default_factory=list)
    arrivals: dict[str, list[float]] = field(default_factory=dict)
    beside_stuck: int = 0  # rounds that ended while the slow site still held its order

    def play(self, kind: str, number: int) -> None:
        """One round of a kind, timed and checked."""
        names = _names(self.case.few if kind == "few" else self.case.sites)
        cap = message_cap(self.table, _CODEC)
        grid = LinkGrid(self.server, names, cap, _JOB)
        with ExitStack() as stack:
            is_stuck = None
            if kind == "all_beside_slow":
                is_stuck = stack.enter_context(
                    _reads_nothing(self.server, self.slow, self._order, number)
                )
            peak = stack.enter_context(_Peak())
            start = time.perf_counter()
            records = self._order(number)
            orders = [
                Message(records, node_id(n), "train", group_id=f"{kind}{number}") for n in names
            ]
            arrived = self._receive(grid, orders, start, float(number))
            took = time.perf_counter() - start
            self.beside_stuck += is_stuck is not None and is_stuck()
        if set(arrived) != set(names):
            raise RuntimeError(f"replies must be of {len(names)} sites, got {len(arrived)}")
        if number >= WARM_UP_ROUNDS:
            self.times.setdefault(kind, []).append(took)
            self.rests.append(_rss_mib())
            self.peaks.append(peak.mib)
            if kind == "all":
                for name, when in arrived.items():
                    self.arrivals.setdefault(name, []).append(when / took)

    def _order(self, number: int) -> RecordDict:
        return RecordDict({**pack(self.vector + np.float32(number), self.table, _CODEC)})

    def _receive(
        self, grid: LinkGrid, orders: list[Message], start: float, number: float
    ) -> dict[str, float]:
        """Site -> seconds until its reply, each number of which is right."""
        expected, arrived = -(self.vector + np.float32(number)), dict[str, float]()
        for reply in grid.send_and_receive(orders, timeout=_ROUND_TIMEOUT_S):
            arrived[grid.site_of(reply.metadata.src_node_id)] = time.perf_counter() - start
            if not np.array_equal(unpack(reply.content, self.table, _CODEC), expected):
                raise RuntimeError("reply must be the order's numbers negated, got others")
        return arrived

    def summary(self) -> dict[str, object]:
        """Seconds, MiB and shares of a round."""
        shares = {name: statistics.median(values) for name, values in self.arrivals.items()}
        pairs = zip(self.times["all"], self.times["all_beside_slow"], strict=True)
        third = max(1, len(self.rests) // 3)
        return {
            **{key: value for k, v in self.times.items() for key, value in _summary(k, v).items()},
            "slow_over_all": statistics.median(beside / alone for alone, beside in pairs),
            "server_mib_first_third": statistics.median(self.rests[:third]),
            "server_mib_last_third": statistics.median(self.rests[-third:]),
            "server_mib_peak": max(self.peaks),
            "first_site_share": min(shares.values()),
            "last_site_share": max(shares.values()),
            "rounds_beside_stuck": self.beside_stuck,
        }


def _summary(kind: str, values: list[float]) -> dict[str, object]:
    deciles = statistics.quantiles(values, n=10) if len(values) > 1 else values
    return {
        f"{kind}_round_s": statistics.median(values),
        f"{kind}_p10_s": deciles[0],
        f"{kind}_p90_s": deciles[-1],
        f"{kind}_all_s": [round(value, 6) for value in values],
    }


class _Peak:
    """The most memory that this process held between ``with`` and its end, sampled."""

    def __enter__(self) -> "_Peak":
        self.mib = _rss_mib()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self.mib = max(self.mib, _rss_mib())


def _rss_mib() -> float:
    return float(psutil.Process().memory_info().rss) / _MIB


def _names(count: int) -> list[str]:
    return [f"site{number}" for number in range(count)]


@contextmanager
def _reads_nothing(
    server: LinkServer, config: LinkConfig, order: Callable[[int], RecordDict], number: int
) -> Iterator[Callable[[], bool]]:
    """A greeted site that is sent an order and takes none of it; tells whether it still waits."""
    over = threading.Event()

    def hello() -> Iterator[bytes]:
        yield framing.hello("slow")
        over.wait()

    grid = LinkGrid(server, [_SLOW], 1 << 30, _JOB)
    credentials = Credentials(config.root_pem, config.certificate_pem, config.key_pem)
    with open_channel(config.server, credentials) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{SESSION}")(hello())
        framing.parse(next(call))
        asked = Message(order(number), node_id(_SLOW), "train", group_id=f"slow{number}")
        (message_id,) = grid.push_messages([asked])
        try:
            yield (
                lambda: (
                    _SLOW in server.connected()
                    and server.mailbox.lookup(_SLOW, message_id).letter is not None
                )
            )
        finally:
            over.set()
            call.cancel()
            server.mailbox.withdraw(_SLOW, message_id)
            _wait(lambda: _SLOW not in server.connected())


@contextmanager
def _bench(case: Case, folder: Path) -> Iterator[_Bench]:
    loopback = make_loopback(folder)
    table = OneTensor(case.parameters)
    vector = np.random.default_rng(7).standard_normal(case.parameters).astype(np.float32)
    server = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster)
    server.start()
    names = _names(case.sites)
    with ExitStack() as stack:
        stack.callback(server.stop)
        configs = [loopback.enroll(name, server.port) for name in names]
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        for number in range(_PROCESSES):
            process = context.Process(
                target=_be_sites, args=(configs[number::_PROCESSES], case.parameters, stop)
            )
            process.start()
            stack.callback(_end, process, stop)
        _wait(lambda: server.connected() >= set(names))
        yield _Bench(case, server, loopback.enroll(_SLOW, server.port), table, vector)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"sites must connect within {_START_TIMEOUT_S:g} s, got fewer")
        time.sleep(0.01)


def _end(process: BaseProcess, stop: Event) -> None:
    stop.set()
    process.join(20)
    process.terminate()
    process.join(10)


def _be_sites(configs: list[LinkConfig], parameters: int, stop: Event) -> None:
    """Sites that answer with what they were sent, negated; in a process of their own."""
    log.configure(level="error")
    table, over = OneTensor(parameters), threading.Event()
    cap = message_cap(table, _CODEC)

    def handle(message: Message) -> Message:
        vector = -unpack(message.content, table, _CODEC)
        return Message(RecordDict({**pack(vector, table, _CODEC)}), reply_to=message)

    def observe(state: State) -> None:
        del state

    threads = [
        threading.Thread(target=run, args=(_always(config), handle, lambda job: cap, over, observe))
        for config in configs
    ]
    for thread in threads:
        thread.start()
    stop.wait()
    over.set()
    for thread in threads:
        thread.join(10)


def _always(config: LinkConfig) -> Callable[[], LinkConfig]:
    """A certificate that is not renewed while a benchmark runs."""
    return lambda: config
