"""Cohorts on several processes or machines, by Ray: one actor a core or GPU, each with a base.

An actor holds the job and every site's records, and gets a cohort a message: which sites, the state
that they start from, the round. What a site does follows from seed, site, round and step, so that
neither the number of actors nor who trains whom changes more than last bits.

Not covered: an actor that is lost, which ends the run; records that do not fit one machine.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy as np

from common.adapter import Vector, load_adapter
from common.data.records import Record
from common.errors import InvalidInput, LinkDown, VeiltuneError
from common.job import SignedJob, parse_signed_job
from common.model import require_base
from simulations.engine.cohort import Lane
from simulations.engine.engine import Engine
from simulations.engine.site import SimulatedSite
from simulations.seeded import seeded_keys


@dataclass(repr=False)  # Ray writes an actor's into its log, and this one holds records
class Worker:
    """What an actor does; a class of ours, so that it runs without Ray as well.

    Args:
        signed: the job, as it is signed.
        records: of every site.
        seed: the run's.
        sharing: how many workers share a machine's memory.
    """

    signed: bytes
    records: Mapping[str, Sequence[Record]]
    seed: int
    sharing: int = 1

    @cached_property
    def _engine(self) -> Engine:
        return Engine(sharing=self.sharing)

    @cached_property
    def _sites(self) -> dict[str, SimulatedSite]:
        """All sites. Made when first asked: of what an actor's start raises, Ray keeps no type."""
        signed = parse_signed_job(self.signed)
        adapter = load_adapter(signed.job, require_base(signed.job))
        return {
            site: SimulatedSite(site, signed, adapter, own, seeded_keys(self.seed, site))
            for site, own in self.records.items()
        }

    def train(
        self, asked: Sequence[tuple[str, int | None]], start: Vector, round_: int
    ) -> list[Vector]:
        """The change of each of these sites after its steps, as ``Engine.train`` has it."""
        lanes = [Lane(self._sites[site].consider(), steps, site) for site, steps in asked]
        return list(self._engine.train(lanes, np.array(start), round_))


class RayEngine:
    """Actors from ``with`` to its end, that take a round's sites in cohorts.

    Args:
        signed: the job.
        records: of every site.
        seed: the run's.
        workers: how many actors; 0 for one a GPU or, where there is none, a core.
    """

    def __init__(
        self,
        signed: SignedJob,
        records: Mapping[str, Sequence[Record]],
        seed: int,
        workers: int = 0,
    ) -> None:
        self._signed, self._records, self._seed = signed, records, seed
        self._workers = workers
        self._actors: list[Any] = []
        self._ray: Any = None

    def __enter__(self) -> Self:
        """Start Ray, unless it runs already, and the actors.

        Raises:
            InvalidInput: Ray is not installed.
        """
        try:
            found: Any = importlib.import_module("ray")
        except ImportError as error:
            raise InvalidInput(
                "ray must be installed (pip install 'veiltune[dev]'), got none"
            ) from error
        self._ray = ray = found
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            ray.init(include_dashboard=False, log_to_driver=False, num_cpus=self._workers or None)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = self._workers or gpus or int(ray.cluster_resources().get("CPU", 1))
        has_own_gpu = gpus >= count
        resources = {"num_gpus": 1} if has_own_gpu else {"num_cpus": 1}
        sharing = 1 if has_own_gpu else count  # as if all were on one machine, which is safe
        remote = ray.remote(**resources)(Worker)
        shared = ray.put({site: list(own) for site, own in self._records.items()})
        self._actors = [
            remote.remote(self._signed.to_bytes(), shared, self._seed, sharing)
            for _ in range(count)
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the actors, and Ray if it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        if self._is_ours:
            self._ray.shutdown()

    def train(self, lanes: Sequence[Lane], start: Vector, round_: int) -> Iterator[Vector]:
        """Each site's change, in the order of ``lanes``; arguments as ``Engine.train``.

        Raises:
            VeiltuneError: what a worker raised.
            LinkDown: a worker is lost.
        """
        parts = dealt_out([_cost(lane) for lane in lanes], len(self._actors))
        with self._in_our_words():
            sent = self._ray.put(start)
            asked = [
                actor.train.remote([(lanes[i].site, lanes[i].steps) for i in part], sent, round_)
                for actor, part in zip(self._actors, parts, strict=True)
                if part
            ]
            answers = self._ray.get(asked)
        changes: dict[int, Vector] = {}
        for part, found in zip([p for p in parts if p], answers, strict=True):
            changes |= dict(zip(part, found, strict=True))
        yield from (changes[i] for i in range(len(lanes)))

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """A worker's error of ours as it was there, without Ray's trace; Ray's own in one line."""
        errors = self._ray.exceptions
        try:
            yield
        except errors.RayTaskError as error:
            if isinstance(error.cause, VeiltuneError):
                raise error.cause from None
            raise  # what nobody expected keeps its trace
        except errors.RayError as error:
            raise LinkDown(
                f"ray workers must all be there until a run ends, got {type(error).__name__}"
            ) from error


def dealt_out(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Indices of ``costs`` in ``parts`` of about the same sum, the largest first (Graham 1969).

    >>> dealt_out([1.0, 5.0, 3.0, 3.0], 2)
    [[1, 0], [2, 3]]
    """
    found: list[list[int]] = [[] for _ in range(parts)]
    sums = [0.0] * parts
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        least = sums.index(min(sums))
        found[least].append(index)
        sums[least] += costs[index]
    return found


def _cost(lane: Lane) -> float:
    """Tokens that a site's round computes, about."""
    units = lane.trainer.units
    tokens = sum(len(example.input_ids) for unit in units for example in unit)
    return 1.0 + lane.planned * lane.trainer.mechanism.sampling_rate * tokens
