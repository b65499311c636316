"""Refuse to train when the mechanism is not what the accountant thinks it is.

The checks run on the loaded model, before a job's first release, on public records that take the
very path of training: grouping, sampling, per-sample gradients, clipping, noise, division, the
optimiser, the saved file. Each is a name and a function in ``CHECKS``; a new one is a line there.
All statistical ones together refuse a sound mechanism less than once in ten million runs
(``chance.py`` has the budget).

Not covered: a defect that shows only on certain records; reading and encoding a site's own file; a
hostile operating system.
"""

from collections.abc import Callable

from common.privacy import drawcheck, sumcheck
from common.privacy.subject import Subject


def check_accountants(subject: Subject) -> None:
    """Independent accountants agree on what the whole job costs."""
    subject.require_agreement()


# What a run without noise and clipping still has to keep.
WITHOUT_PRIVACY = ("gradients", "dropout", "sampler")

# In order: what a later check relies on comes first, so that a defect is named by its own check.
CHECKS: dict[str, Callable[[Subject], None]] = {
    "gradients": sumcheck.check_gradients,
    "dropout": sumcheck.check_dropout,
    "neighbours": sumcheck.check_neighbours,
    "sensitivity": sumcheck.check_sensitivity,
    "unit": sumcheck.check_unit,
    "duplicates": sumcheck.check_duplicates,
    "sampler": drawcheck.check_sampler,
    "divisor": sumcheck.check_divisor,
    "whole batch": sumcheck.check_whole_batch,
    "finite": sumcheck.check_finite,
    "weight": sumcheck.check_weight,
    "empty batch": drawcheck.check_empty,
    "keys": drawcheck.check_keys,
    "noise": drawcheck.check_noise,
    "cap": drawcheck.check_cap,
    "accountants": check_accountants,
}


def run_checks(subject: Subject) -> tuple[str, ...]:
    """Run every check that applies; the names of those that passed.

    Raises:
        SelfCheckFailed: by the first that did not.
    """
    is_private = subject.mechanism.clip_norm is not None
    names = tuple(name for name in CHECKS if is_private or name in WITHOUT_PRIVACY)
    for name in names:
        CHECKS[name](subject)
    return names
