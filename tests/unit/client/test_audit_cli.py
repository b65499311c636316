"""``fl-audit``'s empirical commands on a tiny job, as a user runs them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from client.audit_cli import main
from common.audit import canary
from common.audit.report import read_report
from common.privacy.accounting import epsilon
from common.privacy.event import GaussianSteps

JobData = Callable[..., dict[str, Any]]


@pytest.fixture
def job_file(job_data: JobData, tmp_path: Path) -> Callable[..., Path]:
    def make(**sections: Any) -> Path:  # noqa: ANN401
        path = tmp_path / "job.toml"
        path.write_text(tomli_w.dumps(job_data(**sections)))
        return path

    return make


def test_a_sound_mechanism_is_consistent_with_its_claim(
    job_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    argv = ["mechanism", str(job_file()), "--site", "A", "--releases", "400", "--out", str(out)]
    assert main(argv) == 0
    assert "\nconsistent with the claim\n" in capsys.readouterr().out
    report = read_report(out)
    assert report.epsilon == pytest.approx(6.0, abs=0.02)
    assert 0 < report.lower_bound < report.epsilon
    assert report.found["adversary_moved_the_sum"] == pytest.approx(1.0, abs=1e-4)
    assert main(argv) == 2  # a run is never written over another
    assert "must not exist yet" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)  # 40 s of processor time
def test_releases_of_a_site_at_noise_one_show_nine_tenths_of_what_a_step_costs(
    job_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """4.377: the Gaussian mechanism's epsilon at sensitivity and noise 1 (Balle and Wang 2018)."""
    costs = epsilon([GaussianSteps(0.25, 1.0, 6)], 1e-5)
    path = job_file(privacy={"epsilon": costs})
    assert main(["mechanism", str(path), "--site", "A", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert found["releases"] == 90_000
    assert found["noise_multiplier"] == pytest.approx(1.0, abs=0.002)
    assert found["step_epsilon"] == pytest.approx(4.377, abs=0.01)
    assert 0.9 * 4.377 <= found["step_lower_bound"] <= found["step_epsilon"]


def test_a_patients_records_are_audited_together(
    job_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = job_file(privacy={"unit": "patient_id", "unit_cap": 3})
    assert main(["mechanism", str(path), "--site", "A", "--releases", "200", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["found"]["adversary_moved_the_sum"] < 1.001
    argv = ["canary", str(path), "--site", "A", "--canaries", "40", "--guesses", "20"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0


def test_half_the_noise_is_refuted_with_status_1(
    job_file: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from common.privacy import noise

    sound = noise.lattice_noise
    monkeypatch.setattr(noise, "lattice_noise", lambda n, s, stream: sound(n, s / 2, stream))
    argv = ["mechanism", str(job_file()), "--site", "A", "--releases", "400", "--json"]
    assert main(argv) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "refuted"
    assert found["lower_bound"] > found["epsilon"]


def test_a_canary_run_is_planned_before_and_can_be_checked_after(
    job_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = job_file(privacy={"epsilon": 3.0}), tmp_path / "run"
    argv = ["canary", str(path), "--site", "A", "--out", str(out), "--canaries", "60"]
    assert main([*argv, "--guesses", "30", "--runs", "3", "--run", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    plan = json.loads((out / "plan.json").read_bytes())
    coins = json.loads((out / "coins.json").read_bytes())
    assert (
        report["preregistration_sha256"]
        == hashlib.sha256((out / "plan.json").read_bytes()).hexdigest()
    )
    assert (plan["canaries"], plan["guesses"], plan["run"], plan["runs"]) == (60, 30, 2, 3)
    assert plan["commitment"] == canary.commitment(bytes.fromhex(coins["coins"]))
    assert report["records"] == "public"
    assert main([*argv, "--guesses", "30"]) == 2  # the folder is there
    assert "every run counts" in capsys.readouterr().err


def test_private_records_are_named_as_such_and_their_report_stays(
    job_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from common.errors import Refusal
    from tests.conftest import records, write_records

    private = write_records(tmp_path / "mine.csv", records(12, offset=77))
    argv = ["canary", str(job_file()), "--site", "A", "--canaries", "40", "--guesses", "20"]
    assert main([*argv, "--records", str(private), "--out", str(tmp_path / "run")]) == 0
    assert "stays at this site" in " ".join(capsys.readouterr().out.split())
    report = read_report(tmp_path / "run" / "report.json")
    assert report.records == "private"
    with pytest.raises(Refusal, match="public records"):
        report.require_public()
    assert (tmp_path / "run" / "report.json").stat().st_mode & 0o777 == 0o600


def test_a_membership_attack_reports_rates_and_no_epsilon(
    job_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["membership", str(job_file()), "--site", "A", "--references", "1", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert [attack["name"] for attack in found["attacks"]] == ["loss", "rmia"]
    for rate in (rate for attack in found["attacks"] for rate in attack["rates"]):
        assert rate["false_positives_low"] < rate["false_positives"] < rate["false_positives_high"]
    assert "epsilon" not in json.dumps({**found, "says": ""})
    assert found["says"].startswith("these rates are no epsilon")


def test_a_record_is_read_off_an_update_without_privacy_and_not_off_one_with_it(
    job_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "inversion.svg"
    argv = ["inversion", str(job_file()), "--site", "A", "--out", str(out), "--rank", "14"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] >= 5
    assert found["recovered_without_privacy"] == found["tokens"]
    assert found["recovered_with_privacy"] <= 2  # of 357 tokens; chance finds 0
    assert out.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["mechanism", "--releases", "3"], "releases must be 200 to"),
        (["mechanism", "--runs", "0"], "runs must be 1 to"),
        (["mechanism", "--significance", "0.7"], "significance must be in"),
        (["canary", "--out", "x", "--canaries", "9999"], "canaries must be 20 to 355"),
        (["canary", "--out", "x", "--canaries", "40", "--guesses", "7"], "guesses must be even"),
        (["canary", "--out", "x", "--canaries", "40", "--run", "2"], "run must be 1 to runs = 1"),
        (["membership", "--references", "0"], "references must be 1 to 64"),
        (["membership", "--adapter", "x"], "must be given together"),
        (["inversion", "--out", "x", "--rank", "5"], "rank must be 10 to 256"),
        (["inversion", "--out", "x", "--record", "999"], "record must be 0 to 23"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence(
    argv: list[str],
    says: str,
    job_file: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = job_file()
    monkeypatch.chdir(tmp_path)
    command, *options = argv
    assert main([command, str(path), "--site", "A", *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_job_without_privacy_has_nothing_to_audit(
    job_file: Callable[..., Path], no_privacy: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = job_file(privacy=no_privacy)
    assert main(["mechanism", str(path), "--site", "A"]) == 2
    assert "privacy.mode must be one that promises something" in capsys.readouterr().err


def test_canaries_share_no_number_and_have_their_length() -> None:
    made = canary.make_canaries(30, 100, 0.7, bytes(32))
    rows = made.gradients(list(range(30)))
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.full(30, 7.0), rel=1e-5)
    overlaps = rows @ rows.T
    assert np.abs(overlaps - np.diag(np.diag(overlaps))).max() == 0
    assert np.diag(np.array([made.components(row) for row in rows])) == pytest.approx(7.0)
    assert (np.array([made.components(r) for r in rows]) != 0).sum() == 30
