"""What a site takes of a server: all that honest rounds lead to, and no adapter of its choosing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh

from client.step import require_step
from common.adapter import LoadedAdapter, load_adapter
from common.errors import RoundRefused
from common.flower import become_server
from common.job import Job
from common.layout import Vector, factors_of
from common.methods import METHODS, Part
from server.aggregate import Change
from server.strategies import STRATEGIES
from server.strategies.base import Round
from server.strategies.optimizer import optimized
from server.strategies.robust import chosen

MakeJob = Callable[..., Job]
BOUND = 0.3
STARTS = [
    (method, init)
    for method in METHODS
    for init in ("uniform", "orthonormal", "svd")
    if (method, init) not in {("fedsb", "uniform"), ("head", "svd")}
]
# Those whose state has an A.
WITH_A = [
    (method, init)
    for method, init in STARTS
    if Part.A in METHODS[method].state or (init == "svd" and method in ("ffa", "fedsb"))
]


def loaded(
    job: MakeJob,
    method: str,
    init: str = "uniform",
    *,
    rounds: int = 6,
    ranks: dict[str, int] | None = None,
    **aggregation: Any,  # noqa: ANN401
) -> tuple[Job, LoadedAdapter]:
    made = job(
        adapter={"method": method, "init": init, "rank": 3, "ranks": ranks},
        training={"max_update_norm": BOUND, "rounds": rounds, "quorum": 3},
        data={"population": {"A": 30, "B": 30, "C": 30}},
        **({"aggregation": aggregation} if aggregation else {}),
    )
    return made, load_adapter(made, Path(made.model.base), "cpu")


def honest(
    made: Job,
    adapter: LoadedAdapter,
    *,
    alike: float = 0.9,
    present: str = "ABC",
    start: Vector | None = None,
) -> Iterator[Vector]:
    """The state of every round, from updates as long as the bound and ``alike``, or nearly."""
    state, memory = adapter.initial if start is None else start, b""
    for round_ in range(1, made.training.rounds + 1):
        yield state
        changes = list(_changes(made, adapter, round_, alike, present))
        folding = STRATEGIES[made.adapter.method].folding(
            Round(round_, state, made, adapter.layout)
        )
        for change in chosen(made.aggregation, changes):
            folding.add(change)
        state, memory = optimized(made, state, folding.state(), round_, memory)


def _changes(
    made: Job, adapter: LoadedAdapter, round_: int, alike: float, present: str
) -> Iterator[Change]:
    common = np.random.default_rng(5).normal(size=adapter.table.size)
    for place, site in enumerate(present):
        trained = adapter.layout.trained(round_, made.rank(site))
        own = np.random.default_rng((round_, place)).normal(size=trained.size)
        change = alike * common[trained.places] + (1 - alike) * own
        change *= BOUND * (1 - 1e-6) / np.linalg.norm(change)
        yield Change(site, change.astype(np.float32), made.weight(site))


def require_all(made: Job, adapter: LoadedAdapter, states: list[Vector]) -> None:
    """Each state after none that is known, after the one before, and after the first."""
    for round_, state in enumerate(states, start=1):
        require_step(made, adapter, round_, state, None)
        require_step(made, adapter, round_, state, (1, states[0].tobytes()))
        if round_ > 1:
            require_step(made, adapter, round_, state, (round_ - 1, states[round_ - 2].tobytes()))


def matrix(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def with_a(
    adapter: LoadedAdapter, state: Vector, make: Callable[[NDArray[Any]], NDArray[Any]]
) -> Vector:
    """The state with another A (r, k) in every adapted matrix."""
    changed = state.copy()
    for m in adapter.layout.matrices:
        rows = state[m.a].reshape(m.rank, m.inputs).astype(np.float64)
        changed[m.a] = make(rows).astype(np.float32).ravel()
    return changed


@pytest.mark.parametrize("alike", [pytest.param(1.0, marks=pytest.mark.slow), 0.5])
@pytest.mark.parametrize(("method", "init"), STARTS)
def test_honest_rounds_are_taken(job: MakeJob, method: str, init: str, alike: float) -> None:
    made, adapter = loaded(job, method, init)
    require_all(made, adapter, list(honest(made, adapter, alike=alike)))


def test_sites_of_several_ranks_take_what_honest_rounds_make(job: MakeJob) -> None:
    made, adapter = loaded(job, "flexlora", ranks={"A": 1, "B": 2})
    require_all(made, adapter, list(honest(made, adapter)))


def test_a_round_of_the_lowest_rank_alone_may_cut_the_rest_off(job: MakeJob) -> None:
    made, adapter = loaded(job, "flexlora", ranks={"A": 1, "B": 2})
    whole, _ = loaded(job, "flexlora")  # where nobody lacks a rank, nobody cuts
    _, grown = _unmoved(whole, adapter, 2)
    for m in adapter.layout.matrices:
        columns = np.linalg.qr(matrix((m.outputs, m.rank)))[0] * (32.0, 31.0, 30.0)
        grown[m.b] = columns.astype(np.float32).ravel()
    lone = STRATEGIES["flexlora"].folding(Round(2, grown, made, adapter.layout))
    for change in _changes(made, adapter, 2, 0.0, "A"):
        lone.add(change)
    require_step(made, adapter, 3, lone.state(), (2, grown.tobytes()))
    with pytest.raises(RoundRefused, match="must be within"):
        require_step(whole, adapter, 3, lone.state(), (2, grown.tobytes()))


RULES: list[tuple[str, dict[str, Any]]] = [
    ("ffa", {"rule": "median"}),
    ("fedsvd", {"rule": "median"}),
    ("rolora", {"rule": "trimmed-mean", "byzantine": 1}),
    ("fedavg", {"rule": "geometric-median"}),
    ("flora", {"rule": "norm-bound", "norm_bound": 0.1}),
    ("fedavg", {"optimizer": "fedavgm", "learning_rate": 1.0, "momentum": 0.95}),
    (
        "fedsb",
        {
            "optimizer": "fedadam",
            "learning_rate": 0.1,
            "beta_1": 0.9,
            "beta_2": 0.99,
            "tau": 1e-3,
        },
    ),
    (
        "ffa",
        {
            "rule": "median",
            "optimizer": "fedyogi",
            "learning_rate": 0.1,
            "beta_1": 0.9,
            "beta_2": 0.99,
            "tau": 1e-3,
        },
    ),
]


@pytest.mark.parametrize(("method", "asked"), RULES, ids=str)
def test_no_rule_or_optimiser_ends_an_honest_job(
    job: MakeJob, method: str, asked: dict[str, Any]
) -> None:
    become_server()
    init = "orthonormal" if method == "fedsb" else "uniform"
    made, adapter = loaded(job, method, init, rounds=20, **asked)
    for alike in (1.0, 0.3):
        require_all(made, adapter, list(honest(made, adapter, alike=alike)))


@pytest.mark.parametrize(("method", "init"), WITH_A)
def test_no_server_chooses_a_while_b_is_zero(job: MakeJob, method: str, init: str) -> None:
    """What the first gradient of B shows is what A lets through."""
    made, adapter = loaded(job, method, init)
    probe = with_a(adapter, adapter.initial, lambda rows: 1e4 * matrix(rows.shape))
    with pytest.raises(RoundRefused, match="global adapter"):
        require_step(made, adapter, 1, probe, None)
    # As long as an honest one, and orthonormal where that is.
    turned = with_a(adapter, adapter.initial, lambda rows: rows @ np.linalg.qr(matrix((32, 32)))[0])
    with pytest.raises(RoundRefused, match="global adapter"):
        require_step(made, adapter, 1, turned, None)


@pytest.mark.parametrize(("method", "init"), WITH_A)
@pytest.mark.parametrize("round_", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_no_server_chooses_a_later(job: MakeJob, method: str, init: str, round_: int) -> None:
    """Of a job whose B stays zero, and of one that goes on as it should."""
    made, adapter = loaded(job, method, init)
    states = list(honest(made, adapter))
    for before, state in (
        (states[round_ - 2], states[round_ - 1]),
        _unmoved(made, adapter, round_),
    ):
        require_step(made, adapter, round_, state, (round_ - 1, before.tobytes()))
        probe = with_a(adapter, state, lambda rows: 1e4 * matrix(rows.shape))
        with pytest.raises(RoundRefused, match="global adapter"):
            require_step(made, adapter, round_, probe, (round_ - 1, before.tobytes()))


def _unmoved(made: Job, adapter: LoadedAdapter, round_: int) -> tuple[Vector, Vector]:
    """Two states in a row of sites whose changes are all zero."""
    states = [adapter.initial]
    for number in range(1, round_):
        strategy = STRATEGIES[made.adapter.method]
        folding = strategy.folding(Round(number, states[-1], made, adapter.layout))
        size = adapter.layout.trained(number).size
        folding.add(Change("A", np.zeros(size, np.float32), 1.0))
        states.append(folding.state())
    return states[-2], states[-1]


@pytest.mark.parametrize("method", ["fedsvd", "flora", "ffa"])
def test_orthonormal_rows_of_another_space_are_refused(job: MakeJob, method: str) -> None:
    made, adapter = loaded(job, method, "svd")
    before, state = _unmoved(made, adapter, 3)
    turned = with_a(adapter, state, lambda rows: rows @ np.linalg.qr(matrix((32, 32)))[0])
    for latest in (None, (2, before.tobytes())):
        with pytest.raises(RoundRefused, match="global adapter"):
            require_step(made, adapter, 3, turned, latest)


@pytest.mark.parametrize("method", ["fedsvd", "flexlora"])
def test_longer_rows_of_the_same_space_are_refused(job: MakeJob, method: str) -> None:
    made, adapter = loaded(job, method)
    before, state = _unmoved(made, adapter, 3)
    longer = with_a(adapter, state, lambda rows: 1e4 * rows)
    with pytest.raises(RoundRefused, match="must have orthonormal rows"):
        require_step(made, adapter, 3, longer, (2, before.tobytes()))


def numbers_of(adapter: LoadedAdapter, part: Part) -> NDArray[np.bool_]:
    sizes = [spec.size for spec in adapter.table.tensors]
    return np.repeat([one is part for one in adapter.layout.parts], sizes)


@pytest.mark.parametrize("method", [m for m in METHODS if Part.B in METHODS[m].state])
def test_a_leap_of_b_is_refused(job: MakeJob, method: str) -> None:
    made, adapter = loaded(job, method)
    states = list(honest(made, adapter))
    far = states[2].copy()
    far[numbers_of(adapter, Part.B)] += np.float32(5)
    with pytest.raises(RoundRefused, match="must be within"):
        require_step(made, adapter, 3, far, (2, states[1].tobytes()))


@pytest.mark.parametrize(("method", "part"), [("fedex", Part.FOLD), ("flora", Part.FOLD)])
def test_no_server_folds_in_what_no_update_made(job: MakeJob, method: str, part: Part) -> None:
    made, adapter = loaded(job, method)
    states = list(honest(made, adapter))
    far = states[2].copy()
    far[numbers_of(adapter, part)] += np.float32(0.1)
    with pytest.raises(RoundRefused, match="must be within"):
        require_step(made, adapter, 3, far, (2, states[1].tobytes()))


@pytest.mark.parametrize(("method", "asked"), [("fedavg", {}), *RULES[:3], *RULES[5:7]], ids=str)
def test_a_leap_of_the_head_is_refused(job: MakeJob, method: str, asked: dict[str, Any]) -> None:
    become_server()
    init = "orthonormal" if method == "fedsb" else "uniform"
    made, adapter = loaded(job, method, init, **asked)
    states = list(honest(made, adapter))
    far = states[2].copy()
    far[numbers_of(adapter, Part.HEAD)] += np.float32(500 if "optimizer" in asked else 1)
    with pytest.raises(RoundRefused, match="must be within"):
        require_step(made, adapter, 3, far, (2, states[1].tobytes()))


def _elsewhere(adapter: LoadedAdapter) -> Vector:
    """The start of another machine: singular vectors by the eigenvectors of W'W, with any sign."""
    found = adapter.initial.copy()
    every = factors_of(adapter.model)
    for factors, m in zip(every, adapter.layout.matrices, strict=True):
        base = factors.base.double().numpy()
        _, vectors = eigh(base.T @ base)
        own = adapter.initial[m.a].reshape(m.rank, m.inputs)
        right = vectors[:, ::-1][:, : m.rank].T
        right *= -np.sign((right * own).sum(axis=1))[:, None]
        found[m.a] = right.astype(np.float32).ravel()
        if m.core is not None:
            left = base @ right.T
            found[m.b] = (left / np.linalg.norm(left, axis=0)).astype(np.float32).ravel()
    return found


def require_refused(made: Job, adapter: LoadedAdapter, state: Vector) -> None:
    with pytest.raises(RoundRefused, match="must start at the base's singular vectors"):
        require_step(made, adapter, 1, state, None)


OF_SVD = [method for method, init in STARTS if init == "svd"]


@pytest.mark.parametrize("method", OF_SVD)
def test_another_machines_singular_vectors_are_taken(job: MakeJob, method: str) -> None:
    made, adapter = loaded(job, method, "svd")
    served = _elsewhere(adapter)
    assert np.linalg.norm(served - adapter.initial) > 1
    require_step(made, adapter, 1, served, None)
    # Asked again, it is the one that was seen.
    require_step(made, adapter, 1, served, (1, served.tobytes()))
    with pytest.raises(RoundRefused, match="must be within 0"):
        require_step(made, adapter, 1, adapter.initial, (1, served.tobytes()))


@pytest.mark.parametrize("method", OF_SVD)
def test_a_site_that_comes_later_takes_what_grew_from_them(job: MakeJob, method: str) -> None:
    """Where A is trained, as far as the two machines' vectors differ by rounding alone."""
    made, adapter = loaded(job, method, "svd")
    start = _elsewhere(adapter)
    if method in ("fedavg", "rolora", "fedex"):
        start = with_a(adapter, adapter.initial, lambda rows: np.nextafter(np.float32(rows), 9))
    assert not np.array_equal(start, adapter.initial)
    require_all(made, adapter, list(honest(made, adapter, alike=1.0, start=start)))


@pytest.mark.parametrize("method", OF_SVD)
def test_what_is_not_the_bases_leading_space_is_refused(job: MakeJob, method: str) -> None:
    made, adapter = loaded(job, method, "svd")
    # The base maps their space to itself; but its values are the least.
    least = adapter.initial.copy()
    for factors, m in zip(factors_of(adapter.model), adapter.layout.matrices, strict=True):
        base = factors.base.double().numpy()
        _, vectors = eigh(base.T @ base)
        least[m.a] = vectors[:, : m.rank].T.astype(np.float32).ravel()
    require_refused(made, adapter, least)

    def tilted(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """By a thousandth, which moves the values by a millionth only."""
        return np.linalg.qr((rows + 2e-4 * matrix(rows.shape)).T)[0].T

    require_refused(made, adapter, with_a(adapter, adapter.initial, tilted))


def test_rows_of_a_base_without_rank_are_no_longer_than_others(job: MakeJob) -> None:
    made, adapter = loaded(job, "ffa", "svd")
    empty = {one.base_name: torch.zeros_like(one.base) for one in factors_of(adapter.model)}
    without = replace(adapter, bases=empty)
    require_step(made, without, 1, adapter.initial, None)
    require_refused(made, without, with_a(adapter, adapter.initial, lambda rows: 1e4 * rows))


def test_fedsbs_left_singular_vectors_are_the_bases_too(job: MakeJob) -> None:
    made, adapter = loaded(job, "fedsb", "svd")
    probe = adapter.initial.copy()
    probe[numbers_of(adapter, Part.B)] = 1e4 * matrix(adapter.initial.shape)[: 4 * 32 * 3]
    require_refused(made, adapter, probe)


@pytest.mark.parametrize("place", ["b", "head"])
@pytest.mark.parametrize("method", ["fedavg", "ffa", "fedsvd", "fedsb"])
def test_beside_singular_vectors_the_start_is_exact(job: MakeJob, method: str, place: str) -> None:
    made, adapter = loaded(job, method, "svd")
    part = Part.HEAD if place == "head" else Part.CORE if method == "fedsb" else Part.B
    moved = adapter.initial.copy()
    moved[np.flatnonzero(numbers_of(adapter, part))[0]] += np.float32(1e-6)
    with pytest.raises(RoundRefused, match="must be within 0 of the one this site knows"):
        require_step(made, adapter, 1, moved, None)
