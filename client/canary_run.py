"""One audit run with canaries: plan it, train it, guess.

The coins' key is drawn before the plan is written, which commits to it; it is shown afterwards, so
that anybody can toss the coins again.
"""

import json
import os
from dataclasses import dataclass, replace

from client.audit_setting import Setting
from client.auditing import train_job, with_canaries
from common.audit import canary, onerun
from common.audit.canary import Canaries, Guessed, Plan, Power
from common.errors import InvalidInput
from common.privacy.stream import KEY_BYTES


@dataclass(frozen=True)
class Prepared:
    """A run that is planned and not begun.

    Attributes:
        plan: what is written before.
        power: what the run can show.
        canaries: their gradients.
        coins: the key that tosses them.
    """

    plan: Plan
    power: Power
    canaries: Canaries
    coins: bytes

    def coins_document(self) -> bytes:
        """The key, once the run is over."""
        return json.dumps({"coins": self.coins.hex(), "plan": self.plan.sha256}).encode() + b"\n"


def prepare(
    setting: Setting, count: int, guesses: int, significance: float, runs: int, run: int
) -> Prepared:
    """Fix all that has to be fixed beforehand.

    Raises:
        InvalidInput: too few or too many canaries or guesses.
    """
    trainer, clip_norm = setting.trainer, setting.trainer.mechanism.clip_norm or 1.0
    size = trainer.trained(1).size
    canaries = canary.make_canaries(count, size, clip_norm, os.urandom(KEY_BYTES))
    level = significance / runs / 2
    if guesses == 0:
        guesses = onerun.best_guesses(count, setting.event, setting.delta, level, setting.epsilon)
    if not 2 <= guesses <= count or guesses % 2:
        raise InvalidInput(f"guesses must be even and 2 to {count}, got {guesses}")
    coins = os.urandom(KEY_BYTES)
    plan = Plan(
        job_sha256=setting.job.sha256,
        code_sha256=setting.code_sha256,
        site=setting.site,
        epsilon=setting.epsilon,
        delta=setting.delta,
        canaries=count,
        guesses=guesses,
        significance=significance,
        runs=runs,
        run=run,
        commitment=canary.commitment(coins),
    )
    return Prepared(plan, canary.power(plan, setting.event), canaries, coins)


def perform(setting: Setting, prepared: Prepared) -> Guessed:
    """Train the whole job with the canaries that the coins put in, and guess."""
    canary.require_key(prepared.plan, prepared.coins)
    tossed = canary.toss(prepared.plan.canaries, prepared.coins)
    mechanism = setting.trainer.mechanism
    scorer = canary.scorer(
        prepared.canaries, mechanism.clip_norm or 1.0, setting.job.divisor(prepared.plan.site)
    )
    trainer = replace(setting.trainer, units=setting.units)
    included = [number for number, is_in in enumerate(tossed.tolist()) if is_in]
    train_job(with_canaries(trainer, prepared.canaries, included, scorer.watch))
    if scorer.steps != setting.job.steps:
        raise InvalidInput(f"steps must be the job's {setting.job.steps}, got {scorer.steps}")
    return canary.guess(scorer.scores, tossed, prepared.plan)
