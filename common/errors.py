"""Every error that Veiltune raises on purpose, one class for each reaction a caller may have.

    VeiltuneError
    ├── InvalidInput (ValueError)    what somebody typed or a file holds: mend it, run again
    ├── Refusal                      a rule said no, and nothing was released
    │   ├── JobRefused               signature, site policy, base model or adapter table
    │   ├── JobWaits                 a person has yet to decide: the same offer is made again
    │   ├── RoundRefused             a round that does not continue what this site knows
    │   ├── SelfCheckFailed          the mechanism is not what the accountant thinks it is
    │   ├── AccountingInDoubt        accountants that disagree, or one that fails
    │   └── UpdateRejected           a remote party's payload: dropped and logged, never raised on
    ├── LinkDown                     the other side cannot be reached: wait and try again
    ├── StorageFailed                a durable write is in doubt: stop, re-read, never assume
    │   └── LedgerBroken             the account was changed from outside: train no more
    │       └── AnchorBroken         it is not the one that the file beside it remembers
    └── JobStopped                   the operator or a signal ended a job

Messages read ``<name> must be <condition>, got <value>`` and never hold a record or a key.
All are picklable: they take one string.
"""


class VeiltuneError(Exception):
    """Anything expected: a command prints its message on one line and exits with 2."""


class InvalidInput(VeiltuneError, ValueError):
    """A caller's mistake."""


class Refusal(VeiltuneError):
    """A rule said no, and nothing was released."""


class JobRefused(Refusal):
    """A job that this site will not run."""


class JobWaits(Refusal):
    """A job that a person at this site has yet to approve or refuse."""


class RoundRefused(Refusal):
    """A round that does not continue what this site has recorded."""


class SelfCheckFailed(Refusal):
    """A privacy mechanism that does not do what its accounting assumes."""


class AccountingInDoubt(Refusal):
    """An epsilon that independent accountants do not agree on."""


class UpdateRejected(Refusal):
    """A payload that failed a check before use."""


class LinkDown(VeiltuneError):
    """The other side cannot be reached, or turned us away."""


class StorageFailed(VeiltuneError):
    """A durable write did not complete, or what was read back is not what was written."""


class LedgerBroken(StorageFailed):
    """An account that is not the one this site wrote; the message names the entry."""


class AnchorBroken(LedgerBroken):
    """An account that does not continue the head which the file beside it remembers."""


class JobStopped(VeiltuneError):
    """A job ended before its last round, on request."""
