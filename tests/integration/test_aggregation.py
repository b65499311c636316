"""What a job's ``[aggregation]`` makes of a whole run: against numpy, and by a killed server."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Message
from numpy.typing import NDArray
from scipy import optimize, stats

from common import messages
from common.adapter import load_adapter
from common.job import Job
from common.phases import RELEASE

MakeJob = Callable[..., Job]
MakeFederation = Callable[..., Any]
Floats = NDArray[np.float64]

SITES = {"A": 20, "B": 30, "C": 40, "D": 50, "E": 60}
LIAR = "C"


def numbers(reply: Message) -> Floats:
    """An update as it travels, (P,)."""
    data = reply.content.array_records["arrays"]["adapter"].data
    return np.frombuffer(data, "<f4").astype(np.float64)


def rewrite(reply: Message, change: Floats) -> None:
    """Put another update in its place, well-formed."""
    array, data = reply.content.array_records["arrays"]["adapter"], change.astype("<f4").tobytes()
    reply.content.array_records["arrays"]["adapter"] = Array(
        dtype=array.dtype, shape=array.shape, stype=array.stype, data=data
    )
    reply.content.config_records["manifest"]["sha256"] = hashlib.sha256(data).hexdigest()


@dataclass
class Liar:
    """Changes one site's updates on their way, and keeps what every site sent in each round."""

    job: Job
    make: Callable[[Floats], Floats] = lambda change: 40 * change
    sent: dict[tuple[int, str], Floats] = field(default_factory=dict)

    def __call__(self, name: str, reply: Message) -> Message:
        if reply.metadata.message_type != RELEASE:
            return reply
        if name == LIAR:
            rewrite(reply, self.make(numbers(reply)))
        round_ = int(str(reply.content.config_records["round"]["round"]))
        self.sent[round_, name] = numbers(reply)
        return reply

    def rows(self, round_: int) -> Floats:
        """All sites' updates of a round, (n, P), by site."""
        return np.stack([self.sent[round_, site] for site in sorted(self.job.sites)])


WEIGHTS = np.array(list(SITES.values())) / sum(SITES.values())


def krum_order(rows: Floats) -> list[int]:
    """Rows by the sum of squared distances to their n - f - 2 = 2 nearest others; f is 1."""
    squares = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    scores = [np.sort(np.delete(line, i))[:2].sum() for i, line in enumerate(squares)]
    return [int(i) for i in np.argsort(scores)]


def multi_krum(rows: Floats) -> Floats:
    kept = krum_order(rows)[:4]
    return np.average(rows[kept], axis=0, weights=WEIGHTS[kept])


def cut(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.average(rows * np.minimum(1, 0.2 / norms), axis=0, weights=WEIGHTS)


def least_distances(rows: Floats) -> Floats:
    """In the rows' own span, where the minimum is."""
    basis = np.linalg.svd(rows, full_matrices=False)[2]
    seen = rows @ basis.T

    def cost(point: Floats) -> tuple[float, Floats]:
        away = point - seen
        lengths = np.linalg.norm(away, axis=1)
        return float(WEIGHTS @ lengths), (WEIGHTS / lengths) @ away

    start = seen.mean(axis=0)
    found = optimize.minimize(cost, start, jac=True, method="BFGS", options={"gtol": 1e-10})
    return np.asarray(found.x @ basis)


RULES: list[tuple[dict[str, Any], Callable[[Floats], Floats]]] = [
    ({"rule": "mean"}, lambda rows: np.average(rows, axis=0, weights=WEIGHTS)),
    ({"rule": "median"}, lambda rows: np.median(rows, axis=0)),
    (
        {"rule": "trimmed-mean", "byzantine": 1},
        lambda rows: np.asarray(stats.trim_mean(rows, 0.2, axis=0)),
    ),
    ({"rule": "geometric-median"}, least_distances),
    ({"rule": "krum", "byzantine": 1}, lambda rows: rows[krum_order(rows)[0]]),
    ({"rule": "multi-krum", "byzantine": 1}, multi_krum),
    ({"rule": "norm-bound", "norm_bound": 0.2}, cut),
]


def made_for(plain_job: MakeJob, asked: Mapping[str, Any], **training: Any) -> Job:  # noqa: ANN401
    return plain_job(
        adapter={"method": "ffa"},
        training={"rounds": 1, "local_steps": 1, "quorum": 5, **training},
        data={"population": dict(SITES)},
        privacy={"sampling_rate": 0.5},  # so that no site's batch is empty
        aggregation=asked,
    )


def last(fed: Any, made: Job) -> Floats:  # noqa: ANN401 -- a federation of the root conftest's
    return np.frombuffer(fed.checkpoints.latest(made.sha256)[1], "<f4").astype(np.float64)


# That each rule is what its paper says is tests/unit/server/test_robust.py's: here that a job asks
# for it.
QUICK = {"mean", "median"}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param(
            *one, id=one[0]["rule"], marks=() if one[0]["rule"] in QUICK else pytest.mark.slow
        )
        for one in RULES
    ],
)
def test_a_round_with_a_liar_ends_where_its_rule_says(
    plain_job: MakeJob,
    plain_federation: MakeFederation,
    asked: dict[str, Any],
    expected: Callable[[Floats], Floats],
) -> None:
    made = made_for(plain_job, asked)
    fed, adapter = plain_federation(made), load_adapter(made, Path(made.model.base), "cpu")
    fed.tap = liar = Liar(made)
    fed.run()
    moved = last(fed, made) - adapter.initial
    rows = liar.rows(1)
    assert np.linalg.norm(rows, axis=1).argmax() == sorted(SITES).index(LIAR)
    wanted = expected(rows)
    assert np.linalg.norm(moved - wanted) < 1e-4 * np.linalg.norm(wanted)
    mean = np.average(rows, axis=0, weights=WEIGHTS)
    assert (np.linalg.norm(moved - mean) < 1e-4) == (asked["rule"] == "mean")


@pytest.mark.slow
def test_updates_of_several_ranks_are_cut_to_a_bound(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    made = plain_job(
        adapter={"method": "flexlora", "rank": 3, "ranks": {"A": 1, "B": 3}},
        training={"rounds": 2, "local_steps": 1},
        aggregation={"rule": "norm-bound", "norm_bound": 0.05},
    )
    fed = plain_federation(made)
    fed.run()
    adapter = load_adapter(made, Path(made.model.base), "cpu")
    head = slice(adapter.table.size - 99, None)
    assert 0 < np.linalg.norm((last(fed, made) - adapter.initial)[head]) <= 2 * 0.05 * (1 + 1e-5)


def asked_rounds(fed: Any, site: str) -> list[int]:  # noqa: ANN401
    return [
        int(message.metadata.group_id)
        for name, message in fed.requests
        if name == site and message.metadata.message_type == messages.TRAIN
    ]


@pytest.mark.slow
def test_a_site_in_quarantine_is_asked_no_more_also_by_a_server_that_starts_again(
    plain_job: MakeJob,
    plain_federation: MakeFederation,
    logs: Any,  # noqa: ANN401
) -> None:
    made = made_for(plain_job, {"quarantine_after": 2}, rounds=5, quorum=4)
    fed, liar = plain_federation(made), Liar(made, lambda change: np.full_like(change, np.nan))

    def killed(name: str, reply: Message) -> Message:
        if name == "E" and len(fed.rounds) == 4:  # in round 4
            raise KeyboardInterrupt
        return liar(name, reply)

    fed.tap = killed
    with pytest.raises(KeyboardInterrupt):
        fed.run()
    assert asked_rounds(fed, LIAR) == [1, 2]
    fed.tap = liar
    result = fed.run()
    assert asked_rounds(fed, LIAR) == [1, 2]
    assert sorted(set(asked_rounds(fed, "A"))) == [1, 2, 3, 4, 5]
    quarantined = [(e["site"], e["updates"]) for e in logs.events if "quarantined" in e["event"]]
    assert quarantined == [(LIAR, 2), (LIAR, 2)]  # by each of the two servers
    assert {site.name: site.steps for site in result.sites} == dict.fromkeys("ABDE", 5) | {LIAR: 2}


@pytest.mark.slow
def test_without_the_key_nobody_is_in_quarantine(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    made = made_for(plain_job, {"rule": "median"}, rounds=3, quorum=4)
    fed = plain_federation(made)
    fed.tap = Liar(made, lambda change: np.full_like(change, np.nan))
    fed.run()
    assert asked_rounds(fed, LIAR) == [1, 2, 3]


ADAM = {"learning_rate": 0.05, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "fedavgm", "learning_rate": 0.5, "momentum": 0.9},
    {"optimizer": "fedadam", **ADAM},
    {"optimizer": "fedyogi", **ADAM},
]


def by_the_papers(asked: Mapping[str, Any], start: Floats, means: list[Floats]) -> Floats:
    """Hsu et al. (2019) and Reddi et al. (2021), Algorithm 2, with Flower's correction."""
    state, first, second = start, np.zeros_like(start), np.zeros_like(start)
    for round_, mean in enumerate(means, start=1):
        if asked["optimizer"] == "fedavgm":
            first = asked["momentum"] * first + mean
            state = state + asked["learning_rate"] * first
            continue
        rate, beta_1, beta_2 = asked["learning_rate"], asked["beta_1"], asked["beta_2"]
        first = beta_1 * first + (1 - beta_1) * mean
        if asked["optimizer"] == "fedadam":
            second = beta_2 * second + (1 - beta_2) * mean**2
            rate *= np.sqrt(1 - beta_2 ** (round_ + 1)) / (1 - beta_1 ** (round_ + 1))
        else:
            second = second - (1 - beta_2) * mean**2 * np.sign(second - mean**2)
        state = state + rate * first / (np.sqrt(second) + asked["tau"])
    return state


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(a, id=name, marks=() if name == "fedadam" else pytest.mark.slow)
        for a in OPTIMIZERS
        for name in [str(a["optimizer"])]
    ],
)
def test_a_servers_optimiser_goes_on_where_a_killed_server_stopped(
    plain_job: MakeJob, plain_federation: MakeFederation, asked: dict[str, Any]
) -> None:
    made = made_for(plain_job, asked, rounds=4)
    fed, adapter = plain_federation(made), load_adapter(made, Path(made.model.base), "cpu")
    liar = Liar(made, lambda change: change)

    def killed(name: str, reply: Message) -> Message:
        if name == "E" and len(fed.rounds) == 3:  # in round 3
            raise KeyboardInterrupt
        return liar(name, reply)

    fed.tap = killed
    with pytest.raises(KeyboardInterrupt):
        fed.run()
    fed.tap = liar
    fed.run()
    means = [np.average(liar.rows(n), axis=0, weights=WEIGHTS) for n in (1, 2, 3, 4)]
    wanted = by_the_papers(asked, adapter.initial.astype(np.float64), means)
    moved = np.linalg.norm(wanted - adapter.initial)
    assert np.linalg.norm(last(fed, made) - wanted) < 1e-4 * moved
    assert np.linalg.norm(sum(means) + adapter.initial - wanted) > 0.01 * moved


def test_momentum_that_goes_beyond_the_bound_on_updates_ends_no_job(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    """Each round after the first moves the adapter by nearly twice the bound, and more."""
    made = plain_job(
        adapter={"method": "ffa"},
        training={"rounds": 4, "local_steps": 1, "max_update_norm": 0.5},
        aggregation={"optimizer": "fedavgm", "learning_rate": 1.0, "momentum": 0.95},
    )
    fed, adapter = plain_federation(made), load_adapter(made, Path(made.model.base), "cpu")
    toward = np.random.default_rng(0).normal(size=adapter.table.size)
    toward *= 0.499 / np.linalg.norm(toward)

    def alike(_: str, reply: Message) -> Message:
        if reply.metadata.message_type == RELEASE:
            rewrite(reply, toward)
        return reply

    fed.tap = alike
    assert len(fed.run().rounds) == 4
    assert np.linalg.norm(last(fed, made) - adapter.initial) > 4 * 2 * 0.5
