"""``fl-audit heads`` of a bundle: each site's ledger by round, and what is wrong with it.

The oracle is the story that the bundle tells: the sizes of ledgers that the test itself grew.
"""

import json
from pathlib import Path

import pytest

from client.audit_cli import main
from tests.planted_evidence import PLANTED, Planted
from tests.story import told

FORKS = [p for p in PLANTED if p.caught == "heads"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A true bundle of two rounds, and its root."""
    story = told()
    bundle, root = tmp_path / "evidence.zip", tmp_path / "root.pem"
    bundle.write_bytes(story.bundle())
    root.write_bytes(story.by.root.certificate)
    return str(bundle), str(root)


def test_heads_are_those_of_the_sites_ledgers(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heads", files[0], "--root", files[1], "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["passed"]
    assert shown["alarms"] == []
    receipts = told().receipts
    for site in "AB":
        rows = [row for row in shown["heads"] if row["site"] == site]
        assert [row["size"] for row in rows] == [receipt.heads[site].size for receipt in receipts]
        assert [row["state"] for row in rows] == ["first", "consistent"]
        assert [row["round"] for row in rows] == [1, 2]
    assert main(["heads", files[0], "--root", files[1], "--site", "B"]) == 0
    assert "A" not in {line.split(" ")[0] for line in capsys.readouterr().out.splitlines()}


def test_without_a_root_nobody_vouches(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heads", files[0]]) == 3
    assert "no root was given" in capsys.readouterr().out


def test_a_site_that_the_job_has_not_is_no_site(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heads", files[0], "--root", files[1], "--site", "Z"]) == 2
    said = capsys.readouterr()
    assert "site must be one of A, B, got 'Z'" in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_a_root_is_for_a_bundle_alone(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heads", str(tmp_path), "--root", files[1]]) == 2
    assert "root must come with a bundle" in capsys.readouterr().err


def test_a_bundle_with_a_changed_byte_is_refused(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(Path(files[0]).read_bytes())
    data[len(data) // 2] ^= 1
    Path(files[0]).write_bytes(data)
    assert main(["heads", files[0], "--root", files[1]]) == 2
    said = capsys.readouterr().err
    assert "sound bundle" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("planted", FORKS, ids=str)
def test_a_fault_of_a_ledger_is_an_alarm(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, root = planted.make()
    (tmp_path / "evidence.zip").write_bytes(data)
    (tmp_path / "root.pem").write_bytes(root)
    command = ["heads", str(tmp_path / "evidence.zip"), "--root", str(tmp_path / "root.pem")]
    assert main([*command, "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert not shown["passed"]
    assert any(alarm["site"] for alarm in shown["alarms"])
    states = {row["state"] for row in shown["heads"]}
    named = {"shrank": "SHRUNK", "equal size": "FORKED"}
    for word, state in named.items():
        assert (word in str(planted)) <= (state in states)
