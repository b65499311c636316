"""Checking an outcome folder against itself: each epsilon from its steps, each file by its hash.

Whoever can write ``result.json`` can write other steps and their epsilon, so what passes here is
consistent, not true. Not covered: signatures; whether the sites ran these steps with this noise;
accuracies, because the hold-out is not in the folder.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import InvalidInput
from common.result import PrivacyStatement, Result, RoundResult, SiteResult, read_result
from common.words import counted

# Fourier transforms of other library builds differ in the last digits; nobody's privacy does.
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement of ``result.json`` and what became of it; ``found`` is in words."""

    subject: str
    claim: str
    stated: str
    found: str
    passed: bool


def check_outcome(folder: Path) -> tuple[Result, list[Claim]]:
    """Recompute what ``folder/result.json`` states.

    Raises:
        InvalidInput: no folder, or no readable result in it.
    """
    if not folder.is_dir():
        raise InvalidInput(f"outcome must be a folder with a result.json, got {str(folder)!r}")
    result = read_result(folder / "result.json")
    claims = [claim for site in result.sites for claim in _site_claims(site, result)]
    claims += _round_claims(result)
    claims += _metrics_claims(result)
    claims.append(_adapter_claim(result, folder / "adapter" / "adapter_model.safetensors"))
    return result, claims


def _site_claims(site: SiteResult, result: Result) -> Iterator[Claim]:
    subject = f"site {site.name}"
    per_round, rounds = result.privacy.local_steps, result.last_round
    whole = site.steps % per_round == 0 and site.steps <= per_round * rounds
    yield Claim(
        subject=subject,
        claim="steps",
        stated=str(site.steps),
        found=_as_rounds(site.steps, per_round, rounds),
        passed=whole,
    )
    if site.epsilon is None:
        return
    yield Claim(
        subject=subject,
        claim="delta",
        stated=str(site.delta),
        found=str(result.privacy.delta),
        passed=site.delta == result.privacy.delta,
    )
    epsilon = result.privacy.epsilon(site.steps, site.counts)
    passed = _same(site.epsilon, epsilon)
    yield Claim(
        subject=subject,
        claim="epsilon",
        stated=_figure(site.epsilon),
        found=f"{_figure(epsilon)} for {counted(site.steps, 'step')}"
        + (" and its counts" if site.counts else "")
        + ("" if passed else _steps_of(site.epsilon, result)),
        passed=passed,
    )


def _as_rounds(steps: int, per_round: int, last: int) -> str:
    """Steps in the only way that they can come about: a number of whole rounds."""
    rounds, rest = divmod(steps, per_round)
    if rest:
        return f"no whole number of rounds of {per_round}"
    words = f"{counted(steps, 'step')} = {counted(rounds, 'round')} of {per_round}"
    return words if rounds <= last else f"{words}, but {counted(last, 'round')} ran"


def _round_claims(result: Result) -> Iterator[Claim]:
    """Check each round's epsilon: that of the site charged for most rounds by then.

    A message without a reply is charged until its site says otherwise, so the figure may fall
    again, but it is never below what the final one leaves possible: one round is charged at most
    once. Where a site took part in every round this leaves one value for each.
    """
    privacy, last = result.privacy, result.last_round
    most = min(max(site.steps for site in result.sites) // privacy.local_steps, last)
    for row in result.rounds:
        if row.epsilon is None:
            continue
        low = max(0, most - (last - row.round))
        high = most if row.round == last else row.round
        match = _charged_rounds(row.epsilon, privacy, range(low, high + 1))
        yield _round_claim(row, privacy, high if match is None else match, match is not None)


def _round_claim(row: RoundResult, privacy: PrivacyStatement, charged: int, passed: bool) -> Claim:
    steps = charged * privacy.local_steps
    return Claim(
        subject=f"round {row.round}",
        claim="epsilon",
        stated=_figure(row.epsilon),
        found=f"{_figure(privacy.epsilon(steps))} for {counted(steps, 'step')}",
        passed=passed,
    )


def _charged_rounds(epsilon: float, privacy: PrivacyStatement, among: range) -> int | None:
    """The number of rounds in ``among`` that costs ``epsilon``; the usual one, the last, first."""
    for rounds in reversed(among):
        found = privacy.epsilon(rounds * privacy.local_steps)
        if _same(epsilon, found):
            return rounds
        if found is None or found < epsilon:
            return None  # fewer rounds cost less still
    return None


def _steps_of(epsilon: float, result: Result) -> str:
    rounds = _charged_rounds(epsilon, result.privacy, range(result.last_round + 1))
    if rounds is None:
        return "; what is stated fits no number of rounds"
    steps = counted(rounds * result.privacy.local_steps, "step")
    return f"; what is stated is that of {steps}"


def _metrics_claims(result: Result) -> Iterator[Claim]:
    """Check shares, intervals and noise against the sites' counts beside them."""
    stated, noise = result.metrics, result.privacy.metrics_noise_multiplier
    if stated is None or noise is None:
        return
    found = stated.recomputed()
    yield Claim(
        subject="metrics",
        claim="estimates",
        stated=f"{counted(len(stated.estimates), 'share')} of {counted(len(stated.sites), 'site')}",
        found="the same from the counts" if found == stated else "others from the counts",
        passed=found == stated,
    )
    deviation = noise * found.sensitivity
    yield Claim(
        subject="metrics",
        claim="noise",
        stated=f"{stated.deviation:.6g}",
        found=f"{deviation:.6g} for {noise:.6g} times what one unit can add",
        passed=math.isclose(stated.deviation, deviation, rel_tol=TOLERANCE),
    )


def _adapter_claim(result: Result, path: Path) -> Claim:
    found = _sha256(path)
    return Claim(
        subject="adapter",
        claim="file sha256",
        stated=f"{result.adapter_sha256[:16]}…",
        found=f"{found[:16]}…" if found else f"no readable adapter/{path.name}",
        passed=found == result.adapter_sha256,
    )


def _sha256(path: Path) -> str:
    """The hash of a file's bytes; empty where there is no plain file."""
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _same(stated: float, found: float | None) -> bool:
    return found is not None and math.isclose(stated, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _figure(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"{epsilon:.6g}"
