"""The wire benchmark counts what replies weigh, over what A, B and head are by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from common.data.records import Record
from common.job import Job
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


def test_bytes_fall_with_bits_and_pairs_share_a_seed(plain_job: MakeJob, rows: Rows) -> None:
    training = {"rounds": 2, "local_steps": 1, "learning_rate": 0.1}
    population = {"population": dict.fromkeys(SITES, 10)}

    def make(seed: int, codec: str) -> Scenario:
        job = plain_job(data=population, training={**training, "codec": codec})
        records = {
            site: [Record(*row) for row in rows(count, offset=50 * i)]
            for i, (site, count) in enumerate(SITES.items())
        }
        return Scenario(job, records, seed)

    found: dict[str, Any] = wire.measure(make, 2)
    assert found["raw_fp32_bytes"] == BY_HAND
    sizes = [found["codecs"][codec]["bytes"] for codec in wire.CODECS]
    assert sizes == sorted(sizes, reverse=True)
    trained = BY_HAND / 4 - 2 * 2 * 2 * 32  # FFA sends no A
    saved = found["codecs"]["fp32"]["bytes"] - found["codecs"]["bf16"]["bytes"]
    assert saved == pytest.approx(2 * trained, rel=0.02)
    assert found["points_fp32"] == 0.0
    assert found["ratio_fp32"] == found["codecs"]["fp32"]["bytes"] / BY_HAND
