import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from client.account import life_of, open_account, read_life
from client.cli import main
from client.config import SiteHome
from client.curve import draw, svg
from client.outbox import Outbox, RoundKey, Terms
from client.spending import Point, history
from common.errors import InvalidInput, LedgerBroken
from common.keys import new_key
from common.privacy.account import Charge
from common.privacy.accounting import GaussianSteps, epsilon
from common.privacy.entries import Closed
from common.privacy.extract import read_extract, replay
from common.privacy.rdp_filter import RdpFilter

Run = Callable[..., tuple[int, str, str]]
JOB, BARE = "ab" * 32, "cd" * 32
EVENT = GaussianSteps(0.05, 1.3, 4)


class Homes(Protocol):
    """The fixture of that name."""

    def make(self, site: str = "A", **options: object) -> Path: ...
    def load(self, site: str = "A", **options: object) -> SiteHome: ...


@pytest.fixture
def home(homes: Homes) -> SiteHome:
    return homes.load()


@pytest.fixture
def outbox(home: SiteHome) -> Outbox:
    box = Outbox.of(home)
    box.open_job(JOB, "wards", b"{}", 0, GaussianSteps(0.05, 1.3, 24), Terms(unit="patient_id"))
    box.open_job(BARE, "open", b"{}", 0)
    for round_ in (1, 2, 3):
        box.reserve(RoundKey(JOB, round_, f"{round_:064x}"), EVENT, b"start")
    box.reserve(RoundKey(BARE, 1, "1" * 64), GaussianSteps(0.05, 0.0, 7), b"start")
    box.decide(JOB, "approve", "Ada")
    return box


@pytest.fixture
def run(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["--site", "A", "--home", str(home.folder), "ledger", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_the_ledger_shows_what_is_left_by_job_and_how_it_grew(outbox: Outbox, run: Run) -> None:
    total, held = (epsilon([GaussianSteps(0.05, 1.3, n)], 1e-4) for n in (12, 24))
    cap = RdpFilter.for_cap(7.0, 1e-4)
    charged, drawn = (cap.epsilon([GaussianSteps(0.05, 1.3, n)]) for n in (12, 24))
    assert drawn > held > total
    code, out, _ = run("show")
    assert code == 0
    facts = [line.rstrip() for line in out.splitlines()]
    may = "with what open jobs may still spend"
    assert f"lifetime    epsilon 7 at delta 0.0001, by {cap.name}" in facts
    assert f"by the cap  {charged:.3f} charged, {drawn:.3f} {may}, {7 - drawn:.3f} left" in facts
    assert f"by PLD      {total:.3f} charged, {held:.3f} {may}" in facts
    assert "unit        patient_id" in facts
    wards = next(line.split() for line in out.splitlines() if line.startswith("wards"))
    assert wards[2:] == ["running", "patient_id", "3", "12", "24", f"{total:.3f}"]
    bare = next(line.split() for line in out.splitlines() if line.startswith("open"))
    assert bare[2:] == ["running", "record", "1", "7", "no", "privacy"]
    assert "1 rounds that no epsilon covers" in out
    assert "epsilon (PLD) by time, at most 7; unit patient_id" in out


def test_the_same_as_json_for_a_program(outbox: Outbox, run: Run) -> None:
    code, out, _ = run("show", "--json")
    found = json.loads(out)
    assert code == 0
    expected = [epsilon([GaussianSteps(0.05, 1.3, 4 * n)], 1e-4) for n in (1, 2, 3)]
    assert [point["epsilon"] for point in found["history"]] == expected
    assert found["epsilon"] == expected[-1]
    assert found["left"] == 7 - RdpFilter.for_cap(7.0, 1e-4).epsilon([GaussianSteps(0.05, 1.3, 24)])
    assert (found["unit"], found["lifetime"]) == ("patient_id", RdpFilter.for_cap(7.0, 1e-4).name)
    assert found["drawn_by_pld"] == epsilon([GaussianSteps(0.05, 1.3, 24)], 1e-4)
    assert [job["planned_steps"] for job in found["jobs"]] == [24, None]
    assert found["decisions"][0]["who"] == "Ada"
    assert found["head"]["size"] == len(outbox.journal.rows())


def test_what_is_left_is_what_the_account_was_made_with(
    outbox: Outbox, run: Run, home: SiteHome
) -> None:
    """A site.toml that was edited says nothing of what is left, and is not believed."""
    toml = home.folder / "site.toml"
    toml.write_text(toml.read_text().replace("max_epsilon = 7.0", "max_epsilon = 700.0"))
    code, out, err = run("show")
    assert (code, out) == (2, "")
    assert "policy.max_epsilon must be the ledger's 7.0 (fixed when it was made), got 700.0" in err
    assert run("verify")[0] == 0


def test_a_unit_that_the_ledger_was_made_with_cannot_be_taken_out_of_site_toml(
    homes: Homes,
) -> None:
    rules = {"max_epsilon": 7.0, "max_delta": 1e-4}
    home = homes.load(policy={**rules, "required_unit": "patient_id"})
    assert life_of(open_account(home)).units() == read_life(home).units() == ("patient_id",)
    for edited in ({}, {"required_unit": "record"}):
        with pytest.raises(InvalidInput, match=r"policy\.required_unit must be the ledger's"):
            open_account(homes.load(policy={**rules, **edited}))


def test_words_of_an_old_ledger_move_no_cursor(outbox: Outbox, run: Run) -> None:
    with outbox.journal.writing("close-job") as writer:
        writer.append(Closed, job_sha256=JOB, state="\x1b[2Jowned", final_sha256="")
    code, out, _ = run("show")
    assert code == 0
    assert "\x1b" not in out
    assert "\\x1b[2Jowned" in out


def test_a_whole_ledger_is_said_to_be_signed_by_the_sites_own_key(
    outbox: Outbox, run: Run, home: SiteHome
) -> None:
    from client.identity import read_identity
    from common.keys import load_key, public_key_sha256

    code, out, _ = run("verify")
    assert code == 0
    assert "ledger of site A is whole" in out
    assert f"root         sha256 {outbox.head().root}" in out
    assert f"key sha256 {public_key_sha256(load_key(read_identity(home).key).public_key())}" in out
    assert not home.account_path.with_suffix(".key").exists()


def test_a_broken_ledger_is_named_in_one_line_by_every_command(
    outbox: Outbox, run: Run, home: SiteHome, tmp_path: Path
) -> None:
    data = home.account_path.read_bytes()
    place = data.index(b'"who":"Ada"')
    home.account_path.write_bytes(data[: place + 7] + b"Eva" + data[place + 10 :])
    for command in (["show"], ["verify"], ["export", str(tmp_path / "out")]):
        code, out, err = run(*command)
        assert code == 2
        assert not out
        assert err == "error: ledger entry 7 must match its hash, got other bytes\n"
    assert not (tmp_path / "out").exists()


def test_an_exported_ledger_is_checked_without_the_site(
    outbox: Outbox, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "ledger.jsonl"
    assert run("export", str(file))[0] == 0
    account = replay(read_extract(file.read_bytes()))
    assert account.charges() == outbox.charges()
    code, out, _ = run("verify", str(file))
    assert code == 0
    assert "exported ledger of site A is whole" in out
    code, _, err = run("export", str(file))
    assert code == 2
    assert "must not exist yet" in err
    file.write_bytes(file.read_bytes().replace(b"Ada", b"Eva"))
    code, _, err = run("verify", str(file))
    assert code == 2
    assert err == "error: ledger entry 7 must match its hash, got other bytes\n"


def test_the_curve_is_written_once_there_is_one(run: Run, home: SiteHome, tmp_path: Path) -> None:
    code, _, err = run("show")
    assert code == 2
    assert "must have run once to have a ledger" in err
    box = Outbox.of(home)
    code, _, err = run("show", "--plot", str(tmp_path / "plot.svg"))
    assert code == 2
    assert "must hold a charge to be plotted" in err
    assert run("show")[0] == 0
    box.open_job(JOB, "wards", b"{}")
    box.reserve(RoundKey(JOB, 1, "1" * 64), EVENT, b"start")
    assert run("show", "--plot", str(tmp_path / "plot.svg"))[0] == 0
    assert "Epsilon of site A" in (tmp_path / "plot.svg").read_text()


def stranger(tmp_path: Path) -> Path:
    (tmp_path / "evil.pem").write_bytes(new_key())
    (tmp_path / "evil.pem").chmod(0o600)
    return tmp_path / "evil.pem"


def commands(tmp_path: Path) -> list[list[str]]:
    return [["show"], ["verify"], ["export", str(tmp_path / "out")]]


def test_entries_by_a_strangers_key_are_refused_by_every_command_and_the_site(
    outbox: Outbox, run: Run, home: SiteHome, tmp_path: Path
) -> None:
    size = len(outbox.journal.rows())
    other = Outbox(home.account_path, stranger(tmp_path))
    other.journal.rekey("Dr Ada")
    other.decide(BARE, "approve", "Dr Ada")
    for command in commands(tmp_path):
        code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert err.startswith("error: ledger must be signed last by this site's key (sha256 ")
        assert err.count("\n") == 1
    with pytest.raises(InvalidInput, match="must be signed last by this site's key"):
        open_account(home)
    assert len(other.journal.rows()) == size + 2


def test_another_ledger_in_the_place_of_the_sites_is_refused(
    outbox: Outbox, run: Run, home: SiteHome, tmp_path: Path
) -> None:
    cap = outbox.lifetime_cap()
    for name in ("account.db", "account.anchor"):
        (home.folder / name).unlink()
    Outbox(home.account_path, stranger(tmp_path), site="A", cap=cap)
    code, _, err = run("verify")
    assert code == 2
    assert "must be signed last by this site's key" in err
    for name in ("account.db", "account.anchor"):
        (home.folder / name).unlink()
    Outbox(home.account_path, home.folder / "pki" / "site.key", site="B", cap=cap)
    code, _, err = run("verify")
    assert (code, err) == (2, "error: ledger must be that of site A, got that of site 'B'\n")


def test_a_changed_key_is_accepted_by_a_person_who_was_told_what_that_means(
    outbox: Outbox, run: Run, home: SiteHome, tmp_path: Path
) -> None:
    site_key = home.folder / "pki" / "site.key"
    old, size = shutil.copy(site_key, tmp_path / "old.pem"), len(outbox.journal.rows())
    assert run("rekey", "--yes")[1].endswith("is signed by this site's key already\n")
    site_key.write_bytes(new_key())
    code, out, err = run("rekey", "--by", "Bo")
    assert (code, err) == (2, "error: --yes must be given to accept this, got nothing\n")
    assert f"{size} entries, the last of them signed by another key" in out
    assert outbox.head().root in out
    assert run("verify")[0] == 2
    assert len(Outbox(home.account_path).journal.rows()) == size
    code, out, _ = run("rekey", "--yes", "--by", "Bo")
    assert code == 0
    assert out.endswith("accepted without the key before, by Bo\n")
    assert run("verify")[1].endswith("(without the key before, accepted by Bo)\n")

    site_key.write_bytes(new_key())
    code, _, err = run("rekey", "--old-key", str(old))
    assert (code, err) == (2, "error: old key must be the one that signed last, got another\n")
    code, _, err = run("rekey", "--yes", "--by", "\n")
    assert code == 2
    assert "who must be 1 to 200 printable characters" in err


def test_the_old_key_hands_over_without_a_question(
    outbox: Outbox, run: Run, home: SiteHome, tmp_path: Path
) -> None:
    site_key = home.folder / "pki" / "site.key"
    old = shutil.copy(site_key, tmp_path / "old.pem")
    site_key.write_bytes(new_key())
    code, out, _ = run("rekey", "--old-key", str(old), "--by", "Bo")
    assert code == 0
    assert out.endswith("handed over by the key before, by Bo\n")
    code, out, _ = run("verify")
    assert code == 0
    assert out.endswith("(handed over by the key before, accepted by Bo)\n")
    assert open_account(home).charges() == outbox.charges()


def test_no_command_writes_or_makes_a_key_where_the_sites_is_gone(
    outbox: Outbox, run: Run, home: SiteHome, tmp_path: Path
) -> None:
    (home.folder / "pki" / "site.key").rename(tmp_path / "away")
    before = {file: file.read_bytes() for file in home.folder.rglob("*") if file.is_file()}
    for command in [*commands(tmp_path), ["rekey", "--yes"]]:
        code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert err.startswith("error: ledger's key must be in ")
    for command in (["status"], ["jobs"]):
        assert main(["--site", "A", "--home", str(home.folder), *command]) == 2
    with pytest.raises(InvalidInput, match="ledger's key must be in"):
        open_account(home)
    after = {file: file.read_bytes() for file in home.folder.rglob("*") if file.is_file()}
    assert after == before


@pytest.mark.parametrize("look", [Outbox.of, Outbox.unclaimed])
def test_who_reads_a_home_without_an_account_makes_none(
    home: SiteHome, look: Callable[..., Outbox]
) -> None:
    before = sorted(home.folder.rglob("*"))
    with pytest.raises(InvalidInput, match="must be a ledger, got an older or empty one"):
        look(home, is_reader=True)
    assert sorted(home.folder.rglob("*")) == before
    assert look(home).created().site == "A"


def test_no_command_changes_the_account(
    outbox: Outbox, run: Run, home: SiteHome, tmp_path: Path
) -> None:
    before = {file: file.read_bytes() for file in home.folder.glob("account*")}
    for command in commands(tmp_path):
        assert run(*command)[0] == 0
    main(["--site", "A", "--home", str(home.folder), "jobs"])
    assert {file: file.read_bytes() for file in home.folder.glob("account*")} == before


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_lost_account_is_named_and_not_made_by_a_command(
    outbox: Outbox, run: Run, home: SiteHome, tmp_path: Path, lose: Callable[[Path], object]
) -> None:
    lose(home.account_path)
    for command in commands(tmp_path):
        code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert err.startswith("error: account.db must hold the 8 entries that account.anchor")
        assert err.count("\n") == 1
    for name in ("status", "jobs"):
        assert main(["--site", "A", "--home", str(home.folder), name]) == 2
    with pytest.raises(LedgerBroken, match=r"account\.db must hold the 8 entries"):
        open_account(home)


@pytest.mark.parametrize("place", [".", "", "/", "..", "nowhere/x", "x" * 300, "site.toml"])
@pytest.mark.parametrize("command", [["export"], ["show", "--plot"]])
def test_a_place_where_no_file_can_be_written_is_one_line(
    outbox: Outbox,
    run: Run,
    home: SiteHome,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    command: list[str],
) -> None:
    monkeypatch.chdir(home.folder)
    before = sorted(home.folder.iterdir()), (home.folder / "site.toml").read_bytes()
    code, out, err = run(*command, place)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert (sorted(home.folder.iterdir()), (home.folder / "site.toml").read_bytes()) == before


def test_a_plot_replaces_a_plot(outbox: Outbox, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plot.svg"
    for _ in range(2):
        assert run("show", "--plot", str(file))[0] == 0
    file.write_text("notes of mine")
    code, _, err = run("show", "--plot", str(file))
    assert code == 2
    assert "must be an SVG to be replaced, got another file" in err
    assert file.read_text() == "notes of mine"


POINTS = [
    Point("2026-03-01T00:00:00Z", 2.0),
    Point("2026-03-01T12:00:00Z", 3.0),
    Point("2026-03-02T00:00:00Z", 4.0),
]


def test_a_curve_on_a_terminal_is_a_staircase_below_its_maximum() -> None:
    lines = draw(POINTS, 8.0).splitlines()
    assert lines[0] == "      8 ┤" + "╌" * 60
    columns = [line[9:].ljust(60) for line in lines[:8]]
    heights = [sum(row[column] == "█" for row in columns) for column in range(60)]
    assert heights == [2] * 30 + [3] * 29 + [4]
    assert lines[-1].split() == ["2026-03-01", "2026-03-02"]


def test_an_epsilon_above_its_maximum_or_without_bound_is_drawn_all_the_same() -> None:
    above = draw([*POINTS, Point("2026-03-03T00:00:00Z", 16.0)], 8.0).splitlines()
    assert above[0].startswith("     16 ┤")
    assert above[4].count("╌") > 30
    endless = [*POINTS, Point("2026-03-03T00:00:00Z", float("inf"))]
    assert draw(endless, 8.0).splitlines()[0].endswith("█")
    ET.fromstring(svg(endless, 8.0, "a < b"))
    assert draw(POINTS[:1], 8.0).splitlines()[6] == "      2 ┤" + "█" * 60


def test_a_curve_as_svg_has_a_step_for_every_point() -> None:
    root = ET.fromstring(svg(POINTS, 8.0, "a < b"))
    path = next(
        p for p in root.iter("{http://www.w3.org/2000/svg}path") if p.get("class") == "spent"
    )
    heights = [float(piece.split("H")[0]) for piece in path.get("d", "").split("V")[1:]]
    bottom, left = (float(value) for value in path.get("d", "M0 0")[1:].split("V")[0].split()[::-1])
    assert left == 44
    rises = [bottom - height for height in heights]
    assert [rise / rises[0] for rise in rises] == pytest.approx([1, 1.5, 2], abs=0.01)


@pytest.mark.slow
def test_a_long_history_is_thinned_and_ends_with_all_charges() -> None:
    charges = [Charge(JOB, n, EVENT, "", False, at=f"2026-03-01T00:{n:02}:00Z") for n in range(50)]
    found = history(charges, 1e-5)
    assert len(found) == 17
    assert found[0] == Point("2026-03-01T00:02:00Z", epsilon([GaussianSteps(0.05, 1.3, 12)], 1e-5))
    assert found[-1] == Point(
        "2026-03-01T00:49:00Z", epsilon([GaussianSteps(0.05, 1.3, 200)], 1e-5)
    )
    assert history([], 1e-5) == ()
