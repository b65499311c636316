"""Federated and central training differ in nothing but what their row says."""

from math import log2
from types import SimpleNamespace
from typing import Any

from simulations.scenario import Options
from simulations.studies import accuracy, methods
from simulations.studies.methods import RATES, SCREENING_SEED, SEEDS, TASKS, TRIALS
from simulations.sweep import Cell

TASK = TASKS["banking77"]


def best_at(cells: list[Cell], best: dict[tuple[object, object], float]) -> list[tuple[Cell, Any]]:
    """Made-up results: the rate that is best for each arm and epsilon."""
    found = []
    for cell in cells:
        arm, epsilon, rate = (value for _, value in cell.setting)
        final = SimpleNamespace(accuracy=1 / (1 + abs(log2(best[arm, epsilon] / float(str(rate))))))
        found.append((cell, SimpleNamespace(final=final)))
    return found


BEST: dict[tuple[object, object], float] = {
    ("central", "none"): 0.016,
    ("4 sites", "none"): 0.004,
    ("4 sites", 8.0): 16.0,
}


def screened() -> list[tuple[Cell, Any]]:
    """All trials, with ``BEST`` as what they find."""
    found = best_at(methods.screening(TASK, accuracy.PAIRS), BEST)
    for _ in range(len(RATES), TRIALS):
        found += best_at(methods.further(TASK, accuracy.PAIRS, found), BEST)
    return found


def test_each_row_has_all_trials_and_epsilon_3_none(options: list[Options]) -> None:
    cells = [cell for cell, _ in screened()]
    settings = [dict(cell.setting) for cell in cells]
    assert {(s["arm"], s["privacy.epsilon"]) for s in settings} == set(BEST)
    assert len({cell.setting for cell in cells}) == TRIALS * len(BEST)
    assert {cell.seed for cell in cells} == {SCREENING_SEED}
    assert {made.records for made in options} == set(TASK.rows)


def test_the_rows_run_at_their_own_best_rates(options: list[Options]) -> None:
    found = screened()
    options.clear()
    cells = accuracy.finals(TASK, found)
    assert {cell.setting for cell in cells} == {
        (("arm", "central"), ("privacy.epsilon", "none")),
        (("arm", "4 sites"), ("privacy.epsilon", "none")),
        (("arm", "4 sites"), ("privacy.epsilon", 8.0)),
        (("arm", "4 sites"), ("privacy.epsilon", 3.0)),
    }
    rates = [made.values["training.learning_rate"] for made in options[: len(cells)]]
    assert rates == [0.016, 0.004, 16.0, 16.0] * len(SEEDS)
    assert {cell.seed for cell in cells} == set(SEEDS)


def test_only_sites_rate_and_privacy_differ(options: list[Options]) -> None:
    found = screened()
    options.clear()
    accuracy.finals(TASK, found)
    varied = {
        "training.learning_rate",
        "privacy.epsilon",
        "training.optimizer",
        "training.momentum",
    }
    kept = [{k: v for k, v in made.values.items() if k not in varied} for made in options]
    assert all(values == kept[0] for values in kept)
    assert {(made.sites, made.partition) for made in options} == {(1, "iid"), (4, "dirichlet:0.5")}
    assert {made.records for made in options} == {None}
