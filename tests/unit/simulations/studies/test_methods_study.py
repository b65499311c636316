"""A study favours no arm, and what it tells apart was chosen under another seed."""

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from simulations.scenario import Options
from simulations.studies import methods
from simulations.studies.methods import (
    ARMS,
    LORA,
    RATES,
    SEEDS,
    TASKS,
    TRIALS,
    Trial,
    best_of,
    climb,
)
from simulations.sweep import Cell, Failed

TASK = TASKS["ade_corpus_v2"]


def scored(cells: list[Cell], scores: dict[tuple[str, float], float]) -> list[tuple[Cell, Any]]:
    """Made-up results: macro-F1 by arm and rate, at any epsilon."""
    found = []
    for cell in cells:
        setting = dict(cell.setting)
        key = str(setting["arm"]), float(str(setting["training.learning_rate"]))
        final = SimpleNamespace(accuracy=0.5, macro_f1=scores.get(key, 0.1))
        found.append((cell, SimpleNamespace(final=final)))
    return found


def screened(scores: dict[tuple[str, float], float]) -> list[tuple[Cell, Any]]:
    """All trials, with such results."""
    found = scored(methods.screening(TASK, methods.pairs()), scores)
    for _ in range(len(RATES), TRIALS):
        found += scored(methods.further(TASK, methods.pairs(), found), scores)
    return found


def test_every_arm_has_the_same_trials_on_the_same_rows(options: list[Options]) -> None:
    cells = [cell for cell, _ in screened({})]
    trials = Counter((dict(c.setting)["arm"], dict(c.setting)["privacy.epsilon"]) for c in cells)
    assert {arm for arm, _ in trials} == {arm.name for arm in ARMS}
    assert set(trials.values()) == {TRIALS}
    assert len({cell.setting for cell in cells}) == len(cells)
    assert {cell.seed for cell in cells} == {methods.SCREENING_SEED}
    assert {made.records for made in options} == set(TASK.rows)
    assert {made.sites for made in options} == {1, methods.SITES}
    steps = {(v["training.rounds"], v["training.local_steps"]) for v in (o.values for o in options)}
    assert len(steps) == 1


def test_the_best_three_and_fedavg_go_on_at_their_best_rates(options: list[Options]) -> None:
    scores = {
        ("rolora", 4.0): 0.2,
        ("rolora", 16.0): 0.9,
        ("ffa", 1.0): 0.8,
        ("fedsb", 0.25): 0.7,
        ("fedavg", 4.0): 0.3,
    }
    chosen = best_of(TASK, screened(scores), 8.0)
    assert [(trial.arm.name, trial.rate) for trial in chosen[:4]] == [
        ("rolora", 16.0),
        ("ffa", 1.0),
        ("fedsb", 0.25),
        ("fedavg", 4.0),
    ]
    assert [trial.arm.name for trial in chosen[4:]] == ["head", "central"]


def test_trials_go_beyond_the_better_end_and_then_between_the_best(
    options: list[Options],
) -> None:
    scores = {("ffa", 4.0): 0.6, ("ffa", 16.0): 0.7, ("head", 1.0): 0.6}
    tried: dict[object, list[object]] = {}
    for cell, _ in screened(scores):
        if dict(cell.setting)["privacy.epsilon"] == 8.0:
            tried.setdefault(cell.setting[0][1], []).append(dict(cell.setting)[methods.RATE])
    assert tried["ffa"] == [1.0, 4.0, 16.0, 64.0]
    assert tried["head"] == [1.0, 4.0, 0.25, 0.5]
    assert tried["fedavg"] == [1.0, 4.0, 0.25, 0.0625]  # all alike


def test_a_rate_whose_run_failed_is_not_chosen(options: list[Options]) -> None:
    found = [
        (cell, result if dict(cell.setting)[methods.RATE] == 4.0 else Failed(reason="diverged"))
        for cell, result in screened({("ffa", 4.0): 0.0, ("ffa", 1.0): 0.9})
    ]
    assert methods.best_rate(LORA[1], 8.0, methods.scores_of(TASK, found)).rate == 4.0


@given(st.floats(-4, 4))
def test_the_best_of_a_smooth_hill_is_within_a_factor_of_two(peak: float) -> None:
    """In the reach of four trials, 0.0625 to 64, of a score that falls away evenly."""
    best = climb(lambda rate: -abs(math.log2(rate) - peak), RATES)
    assert abs(math.log2(best) - peak) <= 1.0


def test_fedavg_is_not_there_twice(options: list[Options]) -> None:
    scores = {("fedavg", 0.004): 0.9}
    chosen = best_of(TASK, screened(scores), None)
    names = [trial.arm.name for trial in chosen]
    assert names.count("fedavg") == 1
    assert len(names) == 3 + 2
    assert set(names) <= {arm.name for arm in LORA} | {"head", "central"}


def test_what_was_chosen_runs_on_all_rows_under_seeds_that_chose_nothing(
    options: list[Options],
) -> None:
    found = screened({("flora", 1.0): 0.9, ("flora", 0.004): 0.9})
    options.clear()
    cells = methods.finals(TASK, found)
    assert {cell.seed for cell in cells} == set(SEEDS)
    assert methods.SCREENING_SEED not in SEEDS
    assert {made.records for made in options} == {None}
    epsilons = {dict(cell.setting)["privacy.epsilon"] for cell in cells}
    assert epsilons == {3.0, 8.0, "none"}
    of = {
        epsilon: {
            dict(cell.setting)["arm"]
            for cell in cells
            if dict(cell.setting)["privacy.epsilon"] == epsilon
        }
        for epsilon in epsilons
    }
    assert of[3.0] == of[8.0]
    assert "flora" in of["none"]


def test_a_run_without_privacy_has_none(options: list[Options]) -> None:
    methods.scenario_of(TASK, Trial(ARMS[0], None, 1.0), seed=1, rows=None)
    methods.scenario_of(TASK, Trial(ARMS[0], 3.0, 1.0), seed=1, rows=None)
    without, private = options
    assert without.no_privacy
    assert not private.no_privacy
    assert "privacy.epsilon" not in without.values
    assert private.values["privacy.epsilon"] == 3.0
