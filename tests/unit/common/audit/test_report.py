import json
from pathlib import Path
from typing import Any

import pytest

from common.audit.report import AuditReport, read_report, verdict_of, write_report
from common.errors import InvalidInput, Refusal


def report(**changes: Any) -> AuditReport:  # noqa: ANN401
    known: dict[str, Any] = {
        "name": "canary",
        "job_sha256": "ab" * 32,
        "code_sha256": "cd" * 32,
        "site": "A",
        "epsilon": 3.5,
        "delta": 1e-5,
        "lower_bound": 1.25,
        "significance": 0.05,
        "runs": 2,
        "verdict": "consistent with the claim",
        "records": "public",
        "preregistration_sha256": "ef" * 32,
        "found": {"right": 140, "ceiling": 6.5},
    }
    return AuditReport.model_validate(known | changes)


def test_a_report_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = report()
    write_report(tmp_path / "report.json", written)
    assert read_report(tmp_path / "report.json") == written


def test_a_report_is_never_written_over_another(tmp_path: Path) -> None:
    write_report(tmp_path / "report.json", report())
    with pytest.raises(InvalidInput, match="must not exist yet"):
        write_report(tmp_path / "report.json", report(lower_bound=0.5))


@pytest.mark.parametrize(
    ("bound", "verdict"), [(3.6, "consistent with the claim"), (1.25, "refuted")]
)
def test_a_verdict_that_its_bound_denies_is_refused(
    tmp_path: Path, bound: float, verdict: str
) -> None:
    spoilt = json.loads(report().to_bytes()) | {"lower_bound": bound, "verdict": verdict}
    (tmp_path / "report.json").write_text(json.dumps(spoilt))
    with pytest.raises(InvalidInput, match="verdict must be"):
        read_report(tmp_path / "report.json")


@pytest.mark.parametrize("text", ["[]", "{}", '{"name": 1}', "nothing", '{"a": 1, "a": 2}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"report.json"):
        read_report(tmp_path / "report.json")


def test_a_report_on_private_records_goes_nowhere() -> None:
    report().require_public()
    with pytest.raises(Refusal, match="on public records to leave its site"):
        report(records="private").require_public()


def test_a_claim_is_refuted_above_it_alone() -> None:
    assert verdict_of(3.5, 3.5) == "consistent with the claim"
    assert verdict_of(3.5000001, 3.5) == "refuted"


def test_no_word_says_that_an_epsilon_was_measured() -> None:
    root = Path(__file__).parents[4]
    for name in (*(root / "common/audit").glob("*.py"), *(root / "client").glob("*.py")):
        assert "epsilon measured" not in name.read_text().lower(), name
        assert "measured epsilon" not in name.read_text().lower(), name
