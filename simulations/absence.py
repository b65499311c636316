"""Who is away in a round of a simulation: sites not asked, sites that drop out, sites too late.

A seed decides, for each round and each time that the round is asked again. A site that is not
sampled or drops out hears nothing of the round and is charged nothing. A straggler trains, is
charged and shows its charge, and its update is not there at the deadline: what a deployment would
see of it. After the last round all are there again, so that a job's counts have every site's. No
time passes. The server's figures count what a site may have run since it was last
heard (server/charges.py), so that they are upper bounds here too.

Not covered: amplification by sampling of sites; accounting claims none, here as in a deployment. A
site that does only some of its steps: the server uses no such update.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Absence:
    """The model.

    Attributes:
        participation: share of the sites that a round asks, drawn without replacement; at least 1.
        dropout: probability that a site which was asked is away.
        stragglers: probability that one which is there is too late.
    """

    participation: float = 1.0
    dropout: float = 0.0
    stragglers: float = 0.0

    @property
    def is_nobody(self) -> bool:
        """Whether all sites answer every round."""
        return self == NOBODY

    def asked(self, sites: int) -> int:
        """How many of ``sites`` a round asks."""
        return max(1, round(self.participation * sites))

    def draw(
        self, nodes: Sequence[int], seed: int, round_: int, attempt: int
    ) -> tuple[set[int], set[int]]:
        """Which nodes train in this attempt of a round, and which of those are too late."""
        coins = np.random.default_rng([seed, round_, attempt])
        ordered = sorted(nodes)
        chosen = coins.permutation(len(ordered))[: self.asked(len(ordered))]
        is_there, is_late = (coins.random(len(ordered)) for _ in range(2))
        trains = [int(i) for i in sorted(chosen) if is_there[i] >= self.dropout]
        late = [i for i in trains if is_late[i] < self.stragglers]
        return {ordered[i] for i in trains}, {ordered[i] for i in late}


NOBODY = Absence()
