"""Eight processes that race for one lifetime budget with the filter that enforces it.

The check that a job fits and the entry that holds its budget are one transaction: by a filter of
dp-accounting's own, what all accepted jobs may spend together stays within the cap.
"""

from contextlib import suppress
from functools import partial
from pathlib import Path

import dp_accounting as dpa
from dp_accounting import rdp

from client.lifetime import Life, require_lifetime, require_room
from client.outbox import Outbox, RoundKey
from common.errors import JobRefused
from common.job import Job
from common.privacy.account import Charge, Submission
from common.privacy.accounting import GaussianSteps
from common.privacy.rdp_filter import RdpFilter
from tests.faults.test_killed_accounts import RACERS, Forked

CAP = RdpFilter.for_cap(4.0, 1e-5)
JOBS, ROUNDS, STEPS = 4, 3, 5


def job(racer: int, number: int) -> Job:
    """Distinct, and so costly that only some fit."""
    return Job.model_validate(
        {
            "job": {"name": f"job-{racer}-{number}"},
            "model": {"base": "/nowhere", "sha256": "ab" * 32},
            "adapter": {"targets": ["query"]},
            "training": {"rounds": ROUNDS, "local_steps": STEPS, "learning_rate": 0.25},
            "privacy": {"epsilon": 2.0, "delta": 1e-6, "clip_norm": 0.7, "sampling_rate": 0.05},
            "data": {"name": "notes", "labels": ["x", "y"], "population": {"A": 300}},
            "evaluation": {"data": "builtin:wards"},
        }
    )


def race(place: Path, racer: int) -> None:
    """Submit each job and, once accepted, charge each of its rounds."""
    box = Outbox(place / "account.db")
    for number in range(JOBS):
        made = job(racer, number)
        plan = GaussianSteps(0.05, made.noise_multiplier, made.steps)

        def within(submissions: list[Submission], charges: list[Charge], made: Job = made) -> None:
            require_lifetime(made, Life(CAP, submissions, charges))

        with suppress(JobRefused):
            box.open_job(made.sha256, made.job.name, b"{}", 0, plan, within=within)
            event = GaussianSteps(0.05, made.noise_multiplier, STEPS)
            for round_ in range(1, ROUNDS + 1):
                key = RoundKey(made.sha256, round_, f"{round_:064x}")
                box.reserve(key, event, b"", within=lambda charges: require_room(charges, CAP))


def test_jobs_that_are_submitted_at_once_never_hold_more_than_the_cap(
    tmp_path: Path, forked: Forked
) -> None:
    Outbox(tmp_path / "account.db")
    _ = job(0, 0).noise_multiplier  # every process inherits it
    # A round of an accepted job is never refused for room: that would end a process with 1.
    assert forked(RACERS, partial(race, tmp_path)) == [0] * RACERS
    box = Outbox(tmp_path / "account.db")
    box.verify()
    accepted = box.submissions()
    assert 1 < len(accepted) < RACERS * JOBS
    accountant = rdp.RdpAccountant([CAP.order])
    for one in accepted:
        assert one.plan is not None
        gaussian = dpa.GaussianDpEvent(one.plan.noise_multiplier)
        accountant.compose(dpa.PoissonSampledDpEvent(0.05, gaussian), one.plan.steps)
    assert accountant.get_epsilon(CAP.delta) <= CAP.max_epsilon
    assert len(box.charges()) == ROUNDS * len(accepted)
