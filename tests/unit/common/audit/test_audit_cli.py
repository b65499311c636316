import hashlib
import json
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting import rdp

from common.audit.cli import main
from common.privacy import accounting
from common.privacy.accounting import GaussianSteps

RATE, NOISE, LOCAL_STEPS, DELTA, ROUNDS = 0.05, 1.25, 8, 1e-5, 5
WEIGHTS = b"not real weights: only the bytes are hashed"


def spent(steps: int) -> float:
    return accounting.epsilon([GaussianSteps(RATE, NOISE, steps)], DELTA)


def outcome(folder: Path, *, steps: dict[str, int] | None = None) -> dict[str, Any]:
    """A truthful folder: A in every round, B in three of the five."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(WEIGHTS)
    steps = steps or {"A": ROUNDS * LOCAL_STEPS, "B": 3 * LOCAL_STEPS}
    most = max(steps.values()) // LOCAL_STEPS
    rounds = [
        {
            "round": number,
            "accuracy": 0.5,
            "macro_f1": 0.25,
            "epsilon": spent(min(number, most) * LOCAL_STEPS),
            "bytes_up": 4096,
            "seconds": 0.75,
        }
        for number in range(1, ROUNDS + 1)
    ]
    data = {
        "job_sha256": "ab" * 32,
        "name": "discharge",
        "task": "seq-cls",
        "grid": "link",
        "private": True,
        "sites": [
            {"name": name, "epsilon": spent(n), "delta": DELTA, "steps": n}
            for name, n in steps.items()
        ],
        "start": None,
        "rounds": rounds,
        "final": {"accuracy": 0.5, "macro_f1": 0.25, "classes": []},
        "privacy": {
            "mode": "site",
            "unit": "record",
            "neighbours": "add-or-remove-one",
            "sampler": "poisson",
            "sampling_rate": RATE,
            "clip_norm": 0.75,
            "noise_multiplier": NOISE,
            "local_steps": LOCAL_STEPS,
            "delta": DELTA,
            "accountant": "pld",
            "accountant_version": "dp-accounting 0.6.0",
            "seeded": False,
        },
        "seconds": 3.5,
        "adapter_sha256": hashlib.sha256(WEIGHTS).hexdigest(),
    }
    put(folder, data)
    return data


def put(folder: Path, data: dict[str, Any]) -> None:
    (folder / "result.json").write_text(json.dumps(data))


def audit(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Run the command; return its status and what it names as failed."""
    status = main(["result", str(folder), "--json"])
    answer = json.loads(capsys.readouterr().out)
    failed = [f"{c['subject']} {c['claim']}" for c in answer["claims"] if not c["passed"]]
    assert answer["passed"] is (not failed)
    return status, failed


def test_a_truthful_outcome_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome(tmp_path / "out")
    assert audit(tmp_path / "out", capsys) == (0, [])


def test_rounds_that_the_busiest_site_missed_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome(tmp_path / "out", steps={"A": 4 * LOCAL_STEPS, "B": 4 * LOCAL_STEPS})
    assert audit(tmp_path / "out", capsys) == (0, [])


def test_a_charge_that_a_later_reply_took_back_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = outcome(tmp_path / "out", steps={"A": 3 * LOCAL_STEPS})
    for at, charged in enumerate((1, 2, 3, 4, 3)):
        data["rounds"][at]["epsilon"] = spent(charged * LOCAL_STEPS)
    put(tmp_path / "out", data)
    assert audit(tmp_path / "out", capsys) == (0, [])


@pytest.mark.parametrize("factor", [0.5, 0.999, 1.001, 2])
def test_a_tampered_epsilon_of_a_site_is_named(
    factor: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = outcome(tmp_path / "out")
    data["sites"][1]["epsilon"] *= factor
    put(tmp_path / "out", data)
    assert audit(tmp_path / "out", capsys) == (1, ["site B epsilon"])


def test_a_tampered_epsilon_of_a_round_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = outcome(tmp_path / "out")
    data["rounds"][2]["epsilon"] = data["rounds"][1]["epsilon"]
    put(tmp_path / "out", data)
    assert audit(tmp_path / "out", capsys) == (1, ["round 3 epsilon"])


def test_tampered_steps_are_named_with_the_steps_that_would_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = outcome(tmp_path / "out")
    data["sites"][1]["steps"] = 2 * LOCAL_STEPS
    put(tmp_path / "out", data)
    assert main(["result", str(tmp_path / "out")]) == 1
    table = " ".join(capsys.readouterr().out.split())
    assert "FAIL site B epsilon" in table
    assert f"that of {3 * LOCAL_STEPS} steps" in table


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (LOCAL_STEPS + 1, "9 no whole number of rounds of 8"),
        ((ROUNDS + 1) * LOCAL_STEPS, "48 48 steps = 6 rounds of 8, but 5 rounds ran"),
    ],
)
def test_steps_that_are_no_whole_rounds_of_the_run_are_named(
    steps: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = outcome(tmp_path / "out")
    data["sites"][1] |= {"steps": steps, "epsilon": spent(steps)}
    put(tmp_path / "out", data)
    assert audit(tmp_path / "out", capsys) == (1, ["site B steps"])
    assert main(["result", str(tmp_path / "out")]) == 1
    assert f"FAIL site B steps {words}" in " ".join(capsys.readouterr().out.split())


def test_steps_are_read_as_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome(tmp_path / "out", steps={"A": 5 * LOCAL_STEPS, "B": LOCAL_STEPS})
    assert main(["result", str(tmp_path / "out")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "pass site A steps 40 40 steps = 5 rounds of 8" in out
    assert "pass site B steps 8 8 steps = 1 round of 8" in out


def test_a_busiest_site_that_hides_a_round_contradicts_the_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = outcome(tmp_path / "out")
    data["sites"][0] |= {"steps": 4 * LOCAL_STEPS, "epsilon": spent(4 * LOCAL_STEPS)}
    put(tmp_path / "out", data)
    assert audit(tmp_path / "out", capsys) == (1, ["round 5 epsilon"])


def test_another_delta_for_one_site_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = outcome(tmp_path / "out")
    data["sites"][0]["delta"] = 1e-4
    put(tmp_path / "out", data)
    assert audit(tmp_path / "out", capsys) == (1, ["site A delta"])


def test_a_swapped_adapter_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome(tmp_path / "out")
    (tmp_path / "out" / "adapter" / "adapter_model.safetensors").write_bytes(WEIGHTS + b"!")
    assert audit(tmp_path / "out", capsys) == (1, ["adapter file sha256"])


def test_a_missing_adapter_is_a_failed_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome(tmp_path / "out")
    (tmp_path / "out" / "adapter" / "adapter_model.safetensors").unlink()
    assert audit(tmp_path / "out", capsys) == (1, ["adapter file sha256"])


def test_a_run_without_privacy_says_that_it_promises_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = outcome(tmp_path / "out")
    data["private"] = False
    for line in (*data["sites"], *data["rounds"]):
        line["epsilon"] = None
    for site in data["sites"]:
        site["delta"] = None
    data["privacy"] |= {"mode": "none", "noise_multiplier": 0, "clip_norm": None, "delta": None}
    put(tmp_path / "out", data)
    assert main(["result", str(tmp_path / "out")]) == 0
    assert "states no privacy guarantee" in capsys.readouterr().out


def test_the_answer_says_what_it_does_not_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome(tmp_path / "out")
    assert main(["result", str(tmp_path / "out")]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "Not checked: - that the sites really ran these steps" in words


def test_what_is_no_outcome_is_misuse_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text('{"private": true}')
    for folder in (tmp_path / "none", tmp_path):
        assert main(["result", str(folder)]) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith("error: ")
        assert complaint.count("\n") == 1


def test_epsilon_agrees_with_renyi_accounting_from_below(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Renyi accounting (Mironov 2017) is a second upper bound, some per cent looser."""
    argv = "epsilon --sampling-rate 0.05 --noise-multiplier 1.25 --steps 40 --delta 1e-5 --json"
    assert main(argv.split()) == 0
    answer = json.loads(capsys.readouterr().out)
    accountant = rdp.RdpAccountant()
    event = dp_accounting.PoissonSampledDpEvent(RATE, dp_accounting.GaussianDpEvent(NOISE))
    accountant.compose(event, 40)
    assert 0.7 * accountant.get_epsilon(1e-5) < answer["pld"] < accountant.get_epsilon(1e-5)
    assert (answer["steps"], answer["delta"]) == (40, 1e-5)


def test_epsilon_for_a_person_with_many_records_is_told_beside_that_of_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = "epsilon --sampling-rate 0.05 --noise-multiplier 1.25 --steps 40 --delta 1e-5"
    assert main([*argv.split(), "--records", "12", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["group"]["pld"] > 12 * answer["pld"]
    assert answer["group"]["chain_delta"] > 1
    assert main([*argv.split(), "--records", "12"]) == 0
    assert "no promise (delta reaches 1)" in capsys.readouterr().out


def test_no_noise_has_no_bound_and_stays_valid_json(capsys: pytest.CaptureFixture[str]) -> None:
    argv = "epsilon --sampling-rate 0.05 --noise-multiplier 0 --steps 40 --delta 1e-5 --json"
    assert main([*argv.split(), "--records", "3"]) == 0
    answer = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (answer["pld"], answer["group"]["pld"]) == (None, None)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--sampling-rate", "1.5"),
        ("--sampling-rate", "nan"),
        ("--noise-multiplier", "-1"),
        ("--steps", "-1"),
        ("--delta", "0"),
        ("--delta", "2"),
        ("--records", "0"),
    ],
)
def test_a_parameter_outside_its_range_is_misuse(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "--sampling-rate": "0.05",
        "--noise-multiplier": "1.25",
        "--steps": "40",
        "--delta": "1e-5",
        option: value,
    }
    assert main(["epsilon", *(f"{key}={value}" for key, value in options.items())]) == 2
    assert "must be" in capsys.readouterr().err
