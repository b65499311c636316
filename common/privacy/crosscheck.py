"""Independent accountants against the one that is reported.

PLD is dp-accounting's. PRV (Gopi et al. 2021, https://arxiv.org/abs/2106.02848) is another method
in other hands, Opacus', and lies above PLD by its own error of 0.01. RDP (Mironov et al. 2019,
https://arxiv.org/abs/1908.10530), by Opacus as well, bounds both from above; at few steps by far,
which is no fault. Whatever does not agree, or fails, is in doubt: nothing is released on it.

PRV over many different mechanisms takes a minute: for audits and for one job's self-check.

Not covered: an error that all share, as in what a step's mechanism is (selfcheck.py).
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.accountant import IAccountant
from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV, compute_safe_domain_size

from common.errors import AccountingInDoubt
from common.privacy import accounting
from common.privacy.event import GaussianSteps, merged, usable_delta
from common.privacy.rdp_filter import rdp_bound

PRV_ERROR = 0.01  # what Opacus' PRV adds to be an upper bound
TOLERANCE = 0.005  # of PRV less its error; relative where epsilon is above 1
_PRV_POINTS = 2**23  # a dozen arrays of 64 MiB
_PRV_MARGIN = 3  # that PRV's domain has beyond what it is computed from

# What numerical code raises when it leaves its range.
_FAILURES = (ArithmeticError, IndexError, MemoryError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class Epsilons:
    """One question's answers; NaN from an accountant that failed."""

    pld: float
    prv: float
    rdp: float

    @property
    def doubt(self) -> str:
        """Why the three do not agree, in a sentence; empty when they do."""
        if self.pld == math.inf:
            return ""  # no promise, and nothing to check
        if math.isnan(self.prv) or math.isnan(self.rdp):
            failed = "PRV" if math.isnan(self.prv) else "RDP"
            return f"{failed} accountant must give a number, got none beside PLD {self.pld:.4f}"
        above = max(0.0, self.prv - PRV_ERROR) - self.pld
        if not abs(above) <= TOLERANCE * max(1.0, self.pld):
            return (
                f"epsilon by PRV must be PLD's {self.pld:.4f} and its own error of {PRV_ERROR}, "
                f"got {self.prv:.4f}"
            )
        return doubt_of_bound(self.pld, self.rdp)


def doubt_of_bound(pld: float, rdp: float) -> str:
    """Why an epsilon by PLD contradicts the bound by RDP, in a sentence; empty when it does not."""
    if pld <= rdp:
        return ""
    return f"epsilon by PLD must be at most RDP's {rdp:.4f}, got {pld:.4f}"


def compare(events: GaussianSteps | Iterable[GaussianSteps], delta: float) -> Epsilons:
    """The epsilon of ``events`` together at ``delta`` by three accountants.

    Where PLD knows no bound, PRV is not asked.

    Args:
        events: one, or all that were executed.
        delta: in (0, 1), with the noise generator's share still in it.

    Raises:
        InvalidInput: a parameter outside its range.

    >>> found = compare(GaussianSteps(0.01, 1.0, 1000), 1e-5)
    >>> [round(figure, 3) for figure in (found.pld, found.prv, found.rdp)]
    [1.828, 1.838, 2.101]
    """
    spent = merged([events] if isinstance(events, GaussianSteps) else events)
    usable = usable_delta(delta, sum(event.steps for event in spent))
    pld = accounting.epsilon(spent, delta)
    if not spent:
        return Epsilons(pld, 0.0, 0.0)
    if pld == math.inf:
        return Epsilons(pld, pld, renyi_epsilon(spent, delta))
    prv = math.nan if _is_too_large(spent, usable) else _ask(PRVAccountant(), spent, usable)
    return Epsilons(pld, prv, renyi_epsilon(spent, delta))


def renyi_epsilon(events: Iterable[GaussianSteps], delta: float) -> float:
    """The epsilon of ``events`` together by RDP alone, which takes milliseconds; NaN if it fails.

    Raises:
        InvalidInput: a parameter outside its range.
    """
    spent = merged(events)
    usable = usable_delta(delta, sum(event.steps for event in spent))
    return _ask(RDPAccountant(), spent, usable) if spent else 0.0


def require_agreement(events: GaussianSteps | Iterable[GaussianSteps], delta: float) -> Epsilons:
    """``compare``, for whoever is about to release something.

    Raises:
        AccountingInDoubt: the accountants disagree, or one of them failed.
        InvalidInput: a parameter outside its range.
    """
    found = compare(events, delta)
    if found.doubt:
        raise AccountingInDoubt(found.doubt)
    return found


def _ask(accountant: IAccountant, spent: tuple[GaussianSteps, ...], delta: float) -> float:
    accountant.history = [(e.noise_multiplier, e.sampling_rate, e.steps) for e in spent]
    try:
        with warnings.catch_warnings():  # of logarithms of 0, and of orders at the range's end
            warnings.simplefilter("ignore")
            return max(0.0, float(accountant.get_epsilon(delta=delta)))
    except _FAILURES:
        return math.nan


def _is_too_large(spent: tuple[GaussianSteps, ...], delta: float) -> bool:
    """Whether PRV would need gigabytes: such an epsilon protects nobody."""
    error = delta / 1000
    steps = [event.steps for event in spent]
    mesh = PRV_ERROR / math.sqrt(sum(steps) * math.log(12 / error) / 2)
    widest = _PRV_POINTS * mesh / 2
    # What is computed below, at the few orders that take no time: no less, but by a hair.
    alone = max(rdp_bound([replace(e, steps=1)], error / 8 / sum(steps)) for e in spent)
    if max(rdp_bound(spent, error / 4), alone) + _PRV_MARGIN <= widest:
        return False
    losses = [PoissonSubsampledGaussianPRV(e.sampling_rate, e.noise_multiplier) for e in spent]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return not compute_safe_domain_size(losses, steps, PRV_ERROR, error) <= widest
    except _FAILURES:
        return True
