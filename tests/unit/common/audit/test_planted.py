"""Planted faults of the mechanism, end to end: which audit notices which, and none goes unnoticed.

The self-check's column is what its own tests claim; here the audits' columns are run. Their table
is in docs/evidence.md.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.audit_setting import Setting
from client.auditing import AuditRehearsal, trainer_of
from client.canary_run import perform, prepare
from common import adapter as adapters
from common.adapter import load_adapter
from common.audit.mechanism import audit_step
from common.errors import SelfCheckFailed
from common.job import Job
from common.privacy.selfcheck import run_checks
from common.privacy.subject import PublicRecord
from tests.unit.common.privacy.test_selfcheck import PLANTED, Plant, plant_noise, scaled_noise

MakeJob = Callable[..., Job]

RELEASES, LEVEL = 3000, 1e-3
CANARIES = 350

FAULTS: dict[str, Plant] = {
    "a quarter of the noise": plant_noise(scaled_noise(0.25)),
    **{
        name: PLANTED[name][0]
        for name in (
            "half the noise",
            "a tenth less noise",
            "no noise",
            "reused noise",
            "noise from a seed",
            "no noise on the head",
            "one draw for all",
            "no clip",
            "per-coordinate clip",
            "batch-level clip",
            "clip to 2 C",
            "shuffled batches",
            "half the rate",
            "realised-batch divisor",
            "skipped empty batch",
            "private record count as weight",
            "NaN gradient spoils the batch",
            "truncated Poisson batch",
        )
    },
}

# Told by thousands of releases.
BY_RELEASES = {
    "a quarter of the noise",
    "half the noise",
    "no noise",
    "reused noise",
    "one draw for all",
    "no clip",
    "per-coordinate clip",
    "clip to 2 C",
    "realised-batch divisor",
    "skipped empty batch",
}
# Told by canaries in one run.
BY_CANARIES = {
    "a quarter of the noise",
    "no noise",
    "one draw for all",
    "no clip",
}

# Expected close to the claim, so that chance decides.
EITHER_WAY_BY_RELEASES = {"batch-level clip", "a tenth less noise"}
EITHER_WAY_BY_CANARIES = {"half the noise", "clip to 2 C"}


@pytest.fixture(autouse=True)
def _no_model_is_left_changed() -> Iterator[None]:
    yield
    adapters._load_adapter.cache_clear()


@pytest.fixture(scope="session")
def audited(make_job: MakeJob) -> Callable[[], Setting]:
    """A site's trainer for a job of 40 steps at epsilon 3, with 36 public units."""

    def make() -> Setting:
        job = make_job(
            training={"rounds": 2, "local_steps": 20, "learning_rate": 0.05},
            privacy={"epsilon": 3.0, "sampling_rate": 0.25},
        )
        trainer = trainer_of(job, load_adapter(job, Path(job.model.base), "cpu"), "A", rows=4)
        public = AuditRehearsal(trainer, "A")
        units = [[public._example(PublicRecord(number))] for number in range(36)]
        return Setting(job, "A", trainer, units, is_private=False)

    return make


def by_releases(setting: Setting) -> bool:
    """Whether releases with and without a record are told apart better than the claim allows."""
    try:
        found = audit_step(AuditRehearsal(setting.trainer, "A"), RELEASES, LEVEL)
    except SelfCheckFailed:
        return True
    return found.told.mu > found.mu


def by_canaries(setting: Setting) -> bool:
    """Whether the canaries of one run refute the job's epsilon."""
    prepared = prepare(setting, CANARIES, 0, 0.05, 1, 1)
    return perform(setting, prepared).bound > setting.epsilon


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_each_fault_is_noticed_where_the_table_says(
    fault: str, audited: Callable[[], Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = audited()
    assert setting.epsilon > 0.9  # calibrated before anything is planted
    FAULTS[fault](monkeypatch)
    with pytest.raises(SelfCheckFailed):
        run_checks(AuditRehearsal(setting.trainer, "A"))
    if fault not in EITHER_WAY_BY_RELEASES:
        assert by_releases(setting) == (fault in BY_RELEASES)
    if fault not in EITHER_WAY_BY_CANARIES:
        assert by_canaries(setting) == (fault in BY_CANARIES)
