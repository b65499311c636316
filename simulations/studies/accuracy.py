"""What federation costs and what privacy costs: one method at four sites, beside one central run.

The same job four times under three seeds: central and federated without privacy, federated at
epsilon 8 and at 3. Each has a rate of three of its own, chosen as the study of methods chooses;
epsilon 3 takes what was chosen at 8.

Not covered: central training under privacy (the study of methods has it); other skews.
"""

from collections.abc import Sequence

from simulations.studies.methods import (
    SCREENED,
    SEEDS,
    Arm,
    Task,
    Trial,
    best_rate,
    cell_of,
    scores_of,
    trials_of,
)
from simulations.sweep import Cell, Outcome

METHOD = {"adapter.method": "ffa"}
CENTRAL = Arm("central", METHOD, sites=1, partition="iid")
FEDERATED = Arm(
    "4 sites", METHOD, sites=4, partition="dirichlet:0.5", private_rates=(1.0, 2.0, 4.0)
)
ROWS = ((CENTRAL, None), (FEDERATED, None), (FEDERATED, 8.0), (FEDERATED, 3.0))


def screening(task: Task) -> list[Cell]:
    """Every rate of every row that has one of its own, on fewer records."""
    own = [(arm, epsilon) for arm, epsilon in ROWS if SCREENED[epsilon] == epsilon]
    return [cell for arm, epsilon in own for cell in trials_of(task, arm, epsilon)]


def finals(task: Task, screened: Sequence[tuple[Cell, Outcome]]) -> list[Cell]:
    """Every row at its rate on all records, seed after seed."""
    scores = scores_of(task, screened)
    chosen = [
        Trial(arm, epsilon, best_rate(arm, SCREENED[epsilon], scores).rate) for arm, epsilon in ROWS
    ]
    return [cell_of(task, trial, seed, rows=None) for seed in SEEDS for trial in chosen]
