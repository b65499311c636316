import json
from pathlib import Path
from typing import Any

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from common.audit.cli import main
from common.audit.events import MAX_EVENTS, MAX_EVENTS_BYTES
from common.privacy.accounting import GaussianSteps, epsilon

EPSILON = "epsilon --sampling-rate 0.01 --noise-multiplier 1.0 --steps 1000 --delta 1e-5"
CALIBRATE = "calibrate --epsilon 3 --delta 1e-5 --sampling-rate 0.01 --steps 3000"
CAP = "--cap-epsilon 3 --cap-delta 1e-5"
JOBS: list[dict[str, Any]] = [
    {"sampling_rate": 0.02, "noise_multiplier": 1.3, "steps": 300, "job": "ab" * 32},
    {"sampling_rate": 0.01, "noise_multiplier": 1.1, "steps": 700},
]


def answer(words: str, capsys: pytest.CaptureFixture[str], status: int = 0) -> dict[str, Any]:
    assert main([*words.split(), "--json"]) == status
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found


def listed(folder: Path, events: object) -> str:
    path = folder / "events.json"
    path.write_text(json.dumps(events))
    return str(path)


def test_epsilon_by_three_accountants_is_the_published(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(EPSILON, capsys)
    assert [round(found[key], 3) for key in ("pld", "prv", "rdp")] == [1.828, 1.838, 2.101]
    assert main(EPSILON.split()) == 0
    out = capsys.readouterr().out
    assert all(figure in out for figure in ("1.8284", "1.8384", "2.1014"))


@pytest.mark.parametrize("accountant", [PRVAccountant, RDPAccountant])
@pytest.mark.parametrize("words", [EPSILON, pytest.param(CALIBRATE, marks=pytest.mark.slow)])
def test_accountants_that_disagree_end_with_1_and_say_so(
    accountant: type,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = accountant.get_epsilon  # type: ignore[attr-defined]
    monkeypatch.setattr(accountant, "get_epsilon", lambda *a, **k: 0.8 * honest(*a, **k))
    assert main(words.split()) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("the figure is in doubt: epsilon by P")
    assert complaint.count("\n") == 1


def test_calibrate_shows_the_noise_for_pld_beside_that_for_the_filter(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = answer(f"{CALIBRATE} {CAP}", capsys)
    # Published: 1.034 by PLD, 1.087 by RDP.
    assert found["noise_multiplier"] == pytest.approx(1.034, abs=2e-3)
    fitting = found["filter"]
    assert fitting["noise_multiplier"] == pytest.approx(1.087, abs=3e-3)
    assert fitting["by_filter"] <= 3 < found["by_filter"] < 3.5
    assert fitting["pld"] < found["pld"] <= 3
    assert fitting["rdp"] <= fitting["by_filter"] + 1e-6
    assert fitting["name"].startswith("rdp-filter order ")
    assert (fitting["epsilon"], fitting["delta"]) == (3, 1e-5)
    assert main(f"{CALIBRATE} {CAP}".split()) == 0
    out = capsys.readouterr().out
    assert f"{found['noise_multiplier']:.4f}" in out
    assert f"{fitting['noise_multiplier']:.4f}" in out


def test_calibrate_without_a_cap_knows_no_filter(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"filter", "by_filter"}.isdisjoint(answer(CALIBRATE, capsys))
    assert main(CALIBRATE.split()) == 0
    assert "filter" not in capsys.readouterr().out


@pytest.mark.parametrize("half", ["--cap-epsilon 3", "--cap-delta 1e-5"])
def test_half_a_cap_is_misuse(half: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"{CALIBRATE} {half}".split()) == 2
    assert "must be given together" in capsys.readouterr().err


def test_a_cap_that_no_noise_reaches_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"{CALIBRATE} --cap-epsilon 1e-6 --cap-delta 1e-9".split()) == 2
    assert "epsilon must be reachable" in capsys.readouterr().err


def test_compose_takes_all_jobs_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"compose {listed(tmp_path, JOBS)} --delta 1e-6"
    steps = [GaussianSteps(0.02, 1.3, 300), GaussianSteps(0.01, 1.1, 700)]
    found = answer(words, capsys)
    assert found["pld"] == epsilon(steps, 1e-6)
    assert (found["events"], found["steps"], found["unit"]) == (2, 1000, "record")
    assert found["rdp"] > found["pld"] > max(epsilon([one], 1e-6) for one in steps)
    assert "prv" not in found
    checked = answer(f"{words} --prv", capsys)
    assert checked["prv"] == pytest.approx(found["pld"] + 0.01, abs=1e-3)
    assert main(words.split()) == 0
    assert "2 events of 1000 steps" in " ".join(capsys.readouterr().out.split())


def test_compose_names_the_unit_and_refuses_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_patient = [job | {"unit": "patient_id"} for job in JOBS]
    words = f"compose {listed(tmp_path, by_patient)} --delta 1e-6"
    assert answer(words, capsys)["unit"] == "patient_id"
    listed(tmp_path, [JOBS[0], by_patient[1]])
    assert main(words.split()) == 2
    assert "unit must be the same in all events" in capsys.readouterr().err


def test_compose_of_nothing_costs_nothing_and_of_no_noise_has_no_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(f"compose {listed(tmp_path, [])} --delta 1e-6", capsys)["pld"] == 0
    bare = [*JOBS, {"sampling_rate": 0.1, "noise_multiplier": 0, "steps": 1}]
    found = answer(f"compose {listed(tmp_path, bare)} --delta 1e-6", capsys)
    assert (found["pld"], found["rdp"]) == (None, None)


def test_compose_refuses_a_renyi_bound_below_pld(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RDPAccountant, "get_epsilon", lambda *_, **__: 0.5)
    assert main(f"compose {listed(tmp_path, JOBS)} --delta 1e-6".split()) == 1
    assert "epsilon by PLD must be at most RDP's 0.5000" in capsys.readouterr().err


def test_every_fault_of_a_list_is_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = [
        {"sampling_rate": 1.01, "noise_multiplier": -1, "steps": 2.5, "sigma": 3},
        {"sampling_rate": "0.1", "noise_multiplier": 1.2, "unit": "a b", "job": "AB"},
        7,
    ]
    assert main(["compose", listed(tmp_path, faults), "--delta", "1e-6"]) == 2
    complaint = capsys.readouterr().err
    for words in (
        "events.0.sampling_rate must be at most 1",
        "events.0.noise_multiplier must be at least 0",
        "events.0.steps must be an integer",
        "events.0.sigma must be a known key",
        "events.1.sampling_rate must be a number",
        "events.1.steps must be given",
        "events.1.unit must be",
        "events.1.job must be",
        "events.2 must be a table",
    ):
        assert words in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[",
        '[{"sampling_rate": 0.1, "sampling_rate": 0.2, "noise_multiplier": 2, "steps": 1}]',
        '[{"sampling_rate": 0.1, "noise_multiplier": NaN, "steps": 1}]',
        "[" * 100_000,
        " " * (MAX_EVENTS_BYTES + 1),
        json.dumps([JOBS[1]] * (MAX_EVENTS + 1)),
    ],
    ids=["table", "broken", "key twice", "nan", "deep", "large", "many"],
)
def test_what_is_no_list_of_events_is_misuse_in_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "events.json").write_text(text)
    assert main(["compose", str(tmp_path / "events.json"), "--delta", "1e-6"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
