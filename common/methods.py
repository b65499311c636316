"""The federated LoRA methods: what of an adapter travels to the sites, and what they train.

What a server does with what comes back is one file a method in ``server/strategies``. A new method
is a line here and a file there.

Not covered: methods that train the base's own weights; adapters that are a site's own for good.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Part(Enum):
    """The kinds of tensors that a job's state may hold.

    ``A`` (r, k) and ``B`` (d, r) are LoRA's factors. ``CORE`` (r, r) stands between them. ``FOLD``
    (d, k) is what was added to the base's own matrix, over the adapter's scaling. ``HEAD`` is all
    of the modules that are trained whole.
    """

    A = "A"
    B = "B"
    CORE = "core"
    FOLD = "fold"
    HEAD = "head"


_BOTH = frozenset({Part.A, Part.B, Part.HEAD})
_B_ALONE = frozenset({Part.B, Part.HEAD})
_A_ALONE = frozenset({Part.A, Part.HEAD})
_HEAD_ALONE = frozenset({Part.HEAD})


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Attributes:
        state: parts that change from round to round, and so travel to the sites.
        phases: parts that a site trains; the first in round 1, then the next, and from the start.
        is_stationary: whether a number that is trained stands for the same when it is trained next,
            so that what rounding left out of one round means something in a later one.
        is_mean: whether the state moves by the mean of the sites' changes, so that another middle
            may stand in the mean's place.
    """

    state: frozenset[Part]
    phases: tuple[frozenset[Part], ...]
    is_mean: bool
    is_stationary: bool = False

    def trains(self, round_: int) -> frozenset[Part]:
        """The parts that a site trains in a round, from 1."""
        return self.phases[(round_ - 1) % len(self.phases)]


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "fedavg": Method(_BOTH, (_BOTH,), is_mean=True, is_stationary=True),
        "ffa": Method(_B_ALONE, (_B_ALONE,), is_mean=True, is_stationary=True),
        "fedsvd": Method(_BOTH, (_B_ALONE,), is_mean=True),
        "rolora": Method(_BOTH, (_B_ALONE, _A_ALONE), is_mean=True, is_stationary=True),
        "fedex": Method(_BOTH | {Part.FOLD}, (_BOTH,), is_mean=False, is_stationary=True),
        "flora": Method(_BOTH | {Part.FOLD}, (_BOTH,), is_mean=False),
        "flexlora": Method(_BOTH, (_BOTH,), is_mean=False),
        "fedsb": Method(
            frozenset({Part.CORE, Part.HEAD}),
            (frozenset({Part.CORE, Part.HEAD}),),
            is_mean=True,
            is_stationary=True,
        ),
        "head": Method(_HEAD_ALONE, (_HEAD_ALONE,), is_mean=True, is_stationary=True),
    }
)
