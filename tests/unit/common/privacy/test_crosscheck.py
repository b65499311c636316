import doctest
import math

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from common.errors import AccountingInDoubt, InvalidInput, Refusal
from common.privacy import accounting, crosscheck
from common.privacy.accounting import GaussianSteps
from common.privacy.crosscheck import Epsilons, compare, renyi_epsilon, require_agreement

JOB = GaussianSteps(0.04, 0.9, 60)

# Rate 0.01, delta 1e-5: RDP and PRV by Opacus 1.6, PLD by dp-accounting 0.6 on a grid of 1e-4.
TABLE = [
    (0.8, 1000, 3.141, 3.151, 3.695),
    (0.8, 10_000, 10.054, 10.064, 10.935),
    (1.0, 1000, 1.828, 1.838, 2.101),
    (1.0, 3000, 3.192, 3.203, 3.511),
    (1.0, 10_000, 6.188, 6.198, 6.713),
    (1.5, 3000, 1.644, 1.654, 1.799),
    (2.0, 1000, 0.622, 0.632, 0.686),
    (2.0, 10_000, 2.163, 2.173, 2.353),
]


@pytest.mark.parametrize(("noise", "steps", "pld", "prv", "rdp"), TABLE)
def test_published_figures(noise: float, steps: int, pld: float, prv: float, rdp: float) -> None:
    found = require_agreement(GaussianSteps(0.01, noise, steps), 1e-5)
    assert found.pld == pytest.approx(pld, abs=1.1e-3)
    assert found.prv == pytest.approx(prv, abs=1e-3)
    assert found.rdp == pytest.approx(rdp, abs=1e-3)


@pytest.mark.parametrize(
    ("event", "delta"),
    [
        (GaussianSteps(1.0, 5.0, 16), 1e-5),
        (GaussianSteps(0.001, 10.0, 1), 1e-5),
        (GaussianSteps(0.001, 10.0, 1), 0.3),  # PRV and RDP are negative here
        (GaussianSteps(1e-6, 1.2, 10), 1e-5),
        (GaussianSteps(0.01, 1e6, 1000), 1e-5),
        (GaussianSteps(0.01, 0.4, 90), 1e-8),
        pytest.param(GaussianSteps(0.001, 1.0, 100_000), 1e-6, marks=pytest.mark.slow),
    ],
)
def test_they_agree_at_the_edges_of_the_range(event: GaussianSteps, delta: float) -> None:
    found = require_agreement(event, delta)
    assert 0 <= found.pld <= found.rdp
    assert found.prv >= 0


def test_few_steps_lie_far_below_renyi_which_is_no_fault() -> None:
    found = require_agreement(GaussianSteps(0.01, 1.0, 100), 1e-5)
    assert (round(found.pld, 2), round(found.rdp, 2)) == (0.72, 1.21)


def test_mixed_jobs_are_compared_as_one() -> None:
    jobs = [JOB, GaussianSteps(0.1, 2.5, 20), JOB]
    found = require_agreement(iter(jobs), 1e-6)
    assert found.pld == accounting.epsilon(jobs, 1e-6)
    assert found.pld > accounting.epsilon([JOB, JOB], 1e-6)
    assert found.rdp == renyi_epsilon(jobs, 1e-6) > renyi_epsilon([JOB, JOB], 1e-6)


def test_nothing_executed_and_no_noise_agree_with_themselves() -> None:
    assert require_agreement([], 1e-5) == Epsilons(0.0, 0.0, 0.0)
    assert require_agreement(GaussianSteps(0.1, 0.0, 2), 1e-5) == Epsilons(*[math.inf] * 3)
    # Renyi's bound is above a thousand: none is promised, and PRV would take gigabytes.
    found = require_agreement(GaussianSteps(0.5, 0.1, 1000), 1e-5)
    assert (found.pld, found.prv) == (math.inf, math.inf)
    assert 1000 < found.rdp < math.inf
    assert renyi_epsilon([], 1e-5) == 0


def test_what_prv_cannot_compute_is_in_doubt() -> None:
    huge = GaussianSteps(0.5, 0.7, 1000)
    assert math.isnan(compare(huge, 1e-5).prv)
    with pytest.raises(AccountingInDoubt, match="PRV accountant must give a number, got none"):
        require_agreement(huge, 1e-5)


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (Epsilons(0.500, 0.5149, 0.6), ""),
        (Epsilons(0.500, 0.5151, 0.6), "epsilon by PRV must be PLD's 0.5000"),
        (Epsilons(0.500, 0.5051, 0.6), ""),
        (Epsilons(0.500, 0.5049, 0.6), "epsilon by PRV"),
        (Epsilons(4.000, 4.0299, 4.5), ""),
        (Epsilons(4.000, 4.0301, 4.5), "epsilon by PRV"),
        (Epsilons(4.000, 3.9899, 4.5), "epsilon by PRV"),
        (Epsilons(4.000, 4.0100, 4.0), ""),
        (Epsilons(4.000, 4.0100, 3.999), "epsilon by PLD must be at most RDP's 3.9990"),
        (Epsilons(4.000, math.nan, 4.5), "PRV accountant"),
        (Epsilons(4.000, 4.0100, math.nan), "RDP accountant"),
        (Epsilons(4.000, math.inf, 4.5), "epsilon by PRV"),
        (Epsilons(math.nan, 4.0100, 4.5), "epsilon by PRV"),
        (Epsilons(0.001, 0.0, 0.2), ""),
    ],
)
def test_the_rule(found: Epsilons, complaint: str) -> None:
    assert found.doubt.startswith(complaint)
    assert bool(found.doubt) is bool(complaint)


def wrong(accountant: type, factor: float, patch: pytest.MonkeyPatch) -> None:
    """An accountant whose figures are off by a factor."""
    honest = accountant.get_epsilon  # type: ignore[attr-defined]
    patch.setattr(accountant, "get_epsilon", lambda *a, **k: factor * honest(*a, **k))


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_wrong_prv_is_refused(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(PRVAccountant, factor, monkeypatch)
    with pytest.raises(Refusal, match="epsilon by PRV must be PLD's"):
        require_agreement(JOB, 1e-5)


def test_a_renyi_bound_that_is_too_low_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(RDPAccountant, 0.5, monkeypatch)
    with pytest.raises(Refusal, match="epsilon by PLD must be at most RDP's"):
        require_agreement(JOB, 1e-5)


def test_a_wrong_pld_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution as Loss

    compose = Loss.self_compose
    # One step in thirty forgotten.
    monkeypatch.setattr(Loss, "self_compose", lambda self, n: compose(self, n - n // 30))
    with pytest.raises(Refusal, match="epsilon by PRV must be PLD's"):
        require_agreement(GaussianSteps(0.04, 0.93, 60), 1e-5)


@pytest.mark.parametrize("accountant", [PRVAccountant, RDPAccountant])
@pytest.mark.parametrize("error", [ValueError, RuntimeError, OverflowError, MemoryError])
def test_an_accountant_that_fails_is_in_doubt(
    accountant: type, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> float:
        raise error("out of its range")

    monkeypatch.setattr(accountant, "get_epsilon", fail)
    with pytest.raises(AccountingInDoubt, match="accountant must give a number"):
        require_agreement(JOB, 1e-5)


def test_delta_and_parameters_outside_their_range_are_misuse() -> None:
    for event, delta in ((JOB, 0.0), (JOB, 2.0**-60), (GaussianSteps(1.5, 1.2, 3), 1e-5)):
        with pytest.raises(InvalidInput, match="must be"):
            require_agreement(event, delta)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(crosscheck).failed == 0
