"""The wire benchmark counts what replies weigh, over what A, B and head are by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from common.data.records import Record
from common.job import Job
from common.privacy.mechanism import Mechanism
from simulations import runs
from simulations.benchmarks import wire
from simulations.scenario import Scenario

MakeJob = Callable[..., Job]
Rows = Callable[..., list[tuple[str, str]]]
SITES = {"A": 12, "B": 9}
# Query and value of two blocks, 32 wide: A and B of rank 2; three labels' head.
BY_HAND = 4 * (2 * 2 * (2 * 32 + 32 * 2) + 3 * 32 + 3)


@pytest.fixture(autouse=True)
def _checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "rehearse", lambda *_, **__: ("skipped",))


@pytest.fixture
def make(plain_job: MakeJob, rows: Rows) -> wire.Make:
    training = {"rounds": 2, "local_steps": 1, "learning_rate": 0.1}
    population = {"population": dict.fromkeys(SITES, 10)}

    def made(seed: int, codec: str) -> Scenario:
        job = plain_job(data=population, training={**training, "codec": codec})
        records = {
            site: [Record(*row) for row in rows(count, offset=50 * i)]
            for i, (site, count) in enumerate(SITES.items())
        }
        return Scenario(job, records, seed)

    return made


def test_bytes_fall_with_bits(make: wire.Make) -> None:
    found: dict[str, Any] = wire.measure(make, 2)
    assert found["raw_fp32_bytes"] == BY_HAND
    sizes = [found["codecs"][codec]["bytes"] for codec in wire.CODECS]
    assert sizes == sorted(sizes, reverse=True)
    trained = BY_HAND / 4 - 2 * 2 * 2 * 32  # FFA sends no A
    saved = found["codecs"]["fp32"]["bytes"] - found["codecs"]["bf16"]["bytes"]
    assert saved == pytest.approx(2 * trained, rel=0.02)
    assert found["ratio_fp32"] == found["codecs"]["fp32"]["bytes"] / BY_HAND


@pytest.mark.slow
def test_every_codec_learns_from_the_same_batches_of_a_seed(
    make: wire.Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    sample = Mechanism.sample

    def watched(self: Mechanism, units: Sequence[Any], round_: int, step: int) -> Any:  # noqa: ANN401
        found = sample(self, units, round_, step)
        drawn.append((round_, step, found))
        return found

    monkeypatch.setattr(Mechanism, "sample", watched)
    wire.measure(make, 2)
    draws = 2 * len(SITES)  # of a run: two rounds of one step
    batches = [drawn[first : first + draws] for first in range(0, len(drawn), draws)]
    assert len(batches) == 2 * len(wire.CODECS)
    assert all(found for _, _, found in drawn[: 2 * draws])
    assert batches[0] != batches[1]  # another seed
    assert batches[::2] == [batches[0]] * len(wire.CODECS)
    assert batches[1::2] == [batches[1]] * len(wire.CODECS)
