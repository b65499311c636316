"""Who is admitted: enrolled, not revoked, not expired; seen at once by a server that runs."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common import pki
from common.errors import InvalidInput, Refusal, StorageFailed
from common.files import write_file
from server.roster import Roster

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
ROOT = pki.create_root("north", now=NOW)
INTERMEDIATE = pki.create_intermediate(ROOT, now=NOW)
ROOT_OF_PROJECT = Path(__file__).parents[3]


def issued(site: str, csr: bytes | None = None, *, days: int = 90, now: dt.datetime = NOW) -> bytes:
    csr = csr or pki.new_site_key_and_csr(site)[1]
    return pki.issue_site(csr, INTERMEDIATE, days=days, now=now)


def serial(certificate: bytes) -> int:
    return pki.load_certificates(certificate)[0].serial_number


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "roster.json"


def test_an_enrolled_certificate_is_admitted_and_no_other(path: Path) -> None:
    roster, ours, strange = Roster(path), issued("A"), issued("A")
    roster.enroll(ours)
    roster.check("A", serial(ours))
    with pytest.raises(Refusal, match="certificate of A must be issued here"):
        roster.check("A", serial(strange))
    with pytest.raises(Refusal, match="must be enrolled at this server, got 'B'"):
        roster.check("B", serial(ours))


def test_one_sites_serial_does_not_admit_another(path: Path) -> None:
    roster, a, b = Roster(path), issued("A"), issued("B")
    roster.enroll(a)
    roster.enroll(b)
    with pytest.raises(Refusal):
        roster.check("B", serial(a))


def test_a_site_holds_the_keys_of_its_certificates_that_stand(path: Path) -> None:
    roster, a, b = Roster(path), issued("A"), issued("B")
    entry = roster.enroll(a)
    other = roster.enroll(b)
    assert roster.holds_key("A", entry.key_sha256)
    assert not roster.holds_key("A", other.key_sha256)
    assert not roster.holds_key("C", other.key_sha256)
    late = NOW + dt.timedelta(days=91)
    assert not roster.holds_key("A", entry.key_sha256, now=late)
    roster.revoke("A")
    assert not roster.holds_key("A", entry.key_sha256)
    path.write_text("{")
    assert not roster.holds_key("B", other.key_sha256)


def test_a_missing_roster_admits_nobody(path: Path) -> None:
    with pytest.raises(Refusal):
        Roster(path).check("A", serial(issued("A")))


def test_a_roster_that_goes_missing_admits_nobody(path: Path) -> None:
    roster, certificate = Roster(path), issued("A")
    roster.enroll(certificate)
    roster.check("A", serial(certificate))
    path.unlink()
    with pytest.raises(Refusal):
        roster.check("A", serial(certificate))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"sites": {"../x": []}}', b'{"sites": {}, "more": 1}',
     b'{"version": 2, "sites": {}}', b"[" * 100_000],
)  # fmt: skip
def test_a_spoilt_roster_admits_nobody_and_is_not_overwritten(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    certificate = issued("A")
    with pytest.raises(Refusal, match="roster must be usable before a site is admitted"):
        Roster(path).check("A", serial(certificate))
    with pytest.raises(InvalidInput):
        Roster(path).enroll(certificate)
    assert path.read_bytes() == content


def test_a_revocation_by_another_process_is_seen_at_once(path: Path) -> None:
    running, certificate = Roster(path), issued("A")
    running.enroll(certificate)
    running.check("A", serial(certificate))
    script = (
        "import pathlib, sys; from server.roster import Roster\n"
        "print(Roster(pathlib.Path(sys.argv[1])).revoke('A'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True, text=True, check=True, cwd=ROOT_OF_PROJECT,
    )  # fmt: skip
    assert done.stdout == "1\n"
    with pytest.raises(Refusal, match="must not be revoked"):
        running.check("A", serial(certificate))


def test_every_change_in_quick_succession_is_seen(path: Path) -> None:
    running, other = Roster(path), Roster(path)
    for _ in range(30):  # quicker than a clock's tick, and inodes are used again
        certificate = issued("A")
        other.enroll(certificate, replace=True)
        running.check("A", serial(certificate))
        other.revoke("A")
        with pytest.raises(Refusal):
            running.check("A", serial(certificate))


def test_a_change_that_keeps_the_files_size_is_seen(path: Path) -> None:
    running, certificate = Roster(path), issued("A")
    running.enroll(certificate)
    contents = {"A": path.read_bytes(), "B": path.read_bytes().replace(b'"A"', b'"B"')}
    for site in ("B", "A") * 20:
        write_file(path, contents[site])
        running.check(site, serial(certificate))


def test_a_certificate_expires_while_its_session_lives(path: Path) -> None:
    roster, certificate = Roster(path), issued("A", days=2)
    roster.enroll(certificate, now=NOW)
    roster.check("A", serial(certificate), now=NOW + DAY)
    with pytest.raises(Refusal, match="expired on"):
        roster.check("A", serial(certificate), now=NOW + 3 * DAY)


def test_a_new_key_takes_the_old_ones_place_only_when_told_to(path: Path) -> None:
    roster, first, second = Roster(path), issued("A"), issued("A")
    roster.enroll(first)
    with pytest.raises(InvalidInput, match="no certificate of another key that stands"):
        roster.enroll(second)
    roster.check("A", serial(first))
    roster.enroll(second, replace=True)
    roster.check("A", serial(second))
    with pytest.raises(Refusal, match="revoked"):
        roster.check("A", serial(first))


def test_an_expired_certificate_stands_in_nobodys_way(path: Path) -> None:
    roster = Roster(path)
    roster.enroll(issued("A", days=2), now=NOW)
    roster.enroll(issued("A"), now=NOW + 3 * DAY)


def test_a_renewal_for_the_same_key_leaves_both_standing(path: Path) -> None:
    roster, (_, csr) = Roster(path), pki.new_site_key_and_csr("A")
    first, second = issued("A", csr), issued("A", csr)
    roster.enroll(first)
    roster.enroll(second)
    roster.check("A", serial(first))
    roster.check("A", serial(second))
    assert roster.revoke("A") == 2
    assert roster.revoke("A") == 0


def test_a_revoked_key_does_not_come_back(path: Path) -> None:
    roster, (_, csr) = Roster(path), pki.new_site_key_and_csr("A")
    roster.enroll(issued("A", csr))
    roster.revoke("A")
    with pytest.raises(InvalidInput, match="must be a new one"):
        roster.enroll(issued("A", csr), replace=True)
    roster.enroll(issued("A"))


def test_two_sites_cannot_share_a_key(path: Path) -> None:
    key, csr = pki.new_site_key_and_csr("A")
    roster = Roster(path)
    roster.enroll(issued("A", csr))
    with pytest.raises(InvalidInput, match="must be its own, got that of A"):
        roster.enroll(issued("B", pki.create_csr("B", key)))


@pytest.mark.parametrize("site", ["B", "../x", "", "A\n"])
def test_only_who_was_enrolled_can_be_revoked(path: Path, site: str) -> None:
    roster = Roster(path)
    roster.enroll(issued("A"))
    with pytest.raises(InvalidInput, match="must be enrolled"):
        roster.revoke(site)


def test_the_file_says_what_was_issued(path: Path) -> None:
    certificate = issued("A")
    Roster(path).enroll(certificate)
    (entry,) = json.loads(path.read_bytes())["sites"]["A"]
    printed = subprocess.run(
        ["openssl", "x509", "-noout", "-serial", "-fingerprint", "-sha256"],
        input=certificate, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    assert f"serial={int(entry['serial'], 16):X}" in printed.replace("serial=0", "serial=")
    assert entry["sha256"] in printed.replace(":", "").lower()
    assert path.stat().st_mode & 0o777 == 0o600


def test_changes_made_at_the_same_time_are_all_kept(path: Path) -> None:
    names = [[f"t{i}s{j}" for j in range(8)] for i in range(4)]
    certificates = {name: issued(name) for group in names for name in group}
    start = threading.Barrier(len(names))

    def enroll_all(group: list[str]) -> None:
        roster = Roster(path)  # the lock is the file's, so threads stand for processes
        start.wait()
        for name in group:
            roster.enroll(certificates[name])

    threads = [threading.Thread(target=enroll_all, args=(group,)) for group in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(Roster(path).sites()) == set(certificates)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_roster_whole(path: Path) -> None:
    certificate = issued("A")
    Roster(path).enroll(certificate)
    script = (
        "import pathlib, sys; from server.roster import Roster, _Sites\n"
        "roster = Roster(pathlib.Path(sys.argv[1])); content = roster._read()\n"
        "print('ready', flush=True)\n"
        "while True: roster._write(content, 'A', content.sites['A'])"
    )
    for wait_s in (0.0, 0.004, 0.009, 0.017):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, cwd=ROOT_OF_PROJECT
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait_s)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        Roster(path).check("A", serial(certificate))


def test_a_certificate_that_was_revoked_or_has_ended_gets_no_other(tmp_path: Path) -> None:
    key, csr = pki.new_site_key_and_csr("A")
    roster = Roster(tmp_path / "roster.json")
    entry = roster.enroll(issued("A", csr, days=30), now=NOW)
    serial = int(entry.serial, 16)
    another = issued("A", pki.create_csr("A", key), days=40)
    with pytest.raises(Refusal, match="must be valid today"):
        roster.renew(another, serial, now=NOW + 31 * DAY)
    with pytest.raises(Refusal, match="must be issued here"):
        roster.renew(another, serial + 1, now=NOW)
    roster.revoke("A", now=NOW)
    with pytest.raises(Refusal, match="must not be revoked"):
        roster.renew(another, serial, now=NOW)
    assert len(roster.sites()["A"]) == 1


def test_a_key_that_is_renewed_every_day_does_not_fill_the_roster(path: Path) -> None:
    _, csr = pki.new_site_key_and_csr("A")
    roster, first = Roster(path), issued("A", csr)
    roster.enroll(first)
    for day in range(1, 21):
        last = issued("A", csr, now=NOW + day * DAY)
        roster.renew(last, serial(first), now=NOW + day * DAY)
    kept = [int(entry.serial, 16) for entry in roster.sites()["A"]]
    assert len(kept) == 18  # the one that asks, sixteen before it, and the new one
    assert {serial(first), serial(last)} <= set(kept)


def test_a_renewal_that_is_due_is_never_one_too_many(path: Path) -> None:
    # As the intermediate nears its end: certificates last for hours, and all end with it.
    _, csr = pki.new_site_key_and_csr("A")
    roster, end = Roster(path), NOW + dt.timedelta(hours=23)
    first = shortened(csr, end, NOW)
    roster.enroll(first, now=NOW)

    def renew(hours: float) -> None:
        moment = NOW + dt.timedelta(hours=hours)
        roster.renew(shortened(csr, end, moment), serial(first), now=moment)

    for _ in range(5):
        renew(1)
    with pytest.raises(Refusal, match="at most 5 a day beyond those that are due"):
        renew(1)
    with pytest.raises(Refusal, match="at most 5 a day"):
        renew(15.5)
    renew(15.7)  # two thirds of 22 hours after the last
    with pytest.raises(Refusal, match="at most 5 a day"):
        renew(15.7)  # though the one that asks is due


def shortened(csr: bytes, end: dt.datetime, now: dt.datetime) -> bytes:
    """A certificate of an intermediate that ends then."""
    above = pki.create_intermediate(ROOT, now=end - dt.timedelta(days=pki.INTERMEDIATE_DAYS))
    return pki.issue_site(csr, above, now=now)


def test_a_site_that_was_left_behind_by_a_root_is_turned_away_and_comes_back_with_its_key(
    path: Path,
) -> None:
    coming = pki.create_intermediate(pki.create_root("south", now=NOW), now=NOW)
    issuer = pki.fingerprint(coming.certificate)
    _, csr = pki.new_site_key_and_csr("A")
    behind, gone_over, old = issued("A", csr), issued("B"), issued("C")
    roster = Roster(path)
    for certificate in (behind, gone_over, old):
        roster.enroll(certificate)
    b_again = pki.issue_site(pki.new_site_key_and_csr("B")[1], coming, now=NOW)
    roster.enroll(b_again, replace=True)
    roster.revoke("C")
    assert roster.retire(issuer) == ("A",)
    assert roster.retire(issuer) == ()
    with pytest.raises(Refusal, match="must be of the root in force, got one of the root that was"):
        roster.check("A", serial(behind))
    roster.check("B", serial(b_again))
    again = pki.issue_site(csr, coming, now=NOW)
    roster.enroll(again)
    roster.check("A", serial(again))
    assert roster.retire(issuer) == ()


# After a restore the roster is older than what its sites hold.


def test_a_certificate_renewed_since_a_backup_is_noted_for_a_key_that_stands(path: Path) -> None:
    roster, (_, csr) = Roster(path), pki.new_site_key_and_csr("A")
    roster.enroll(issued("A", csr))
    renewed = issued("A", csr)
    with pytest.raises(Refusal, match="must be issued here"):
        roster.check("A", serial(renewed))
    roster.check("A", serial(renewed), renewed)
    # From then on as any other: by its number, by whoever reads the file, renewed and revoked.
    Roster(path).check("A", serial(renewed))
    assert [int(e.serial, 16) for e in roster.sites()["A"]][-1] == serial(renewed)
    assert roster.sites()["A"][-1].issuer == pki.fingerprint(INTERMEDIATE.certificate)
    roster.renew(issued("A", csr), serial(renewed), now=NOW)
    assert roster.revoke("A") == 3
    with pytest.raises(Refusal, match="must not be revoked"):
        roster.check("A", serial(renewed), renewed)


def test_no_certificate_of_an_unknown_a_revoked_or_an_ended_key_is_noted(path: Path) -> None:
    roster, (_, csr) = Roster(path), pki.new_site_key_and_csr("A")
    roster.enroll(issued("A", csr, days=2), now=NOW)
    before = path.read_bytes()
    strange, renewed = issued("A"), issued("A", csr)
    with pytest.raises(Refusal, match=r"must be issued here, got .* a key that is not known"):
        roster.check("A", serial(strange), strange)
    with pytest.raises(Refusal, match=r"must be issued here, got .* none which stands"):
        roster.check("A", serial(renewed), renewed, now=NOW + 3 * DAY)
    with pytest.raises(Refusal, match="must be valid today"):
        roster.check("A", serial(renewed), issued("A", csr, days=1), now=NOW + 1.5 * DAY)
    with pytest.raises(Refusal, match="must be enrolled"):
        Roster(path).check("B", serial(renewed), renewed)
    assert path.read_bytes() == before
    roster.revoke("A")
    before = path.read_bytes()
    with pytest.raises(Refusal, match="must not be revoked"):
        roster.check("A", serial(renewed), renewed)
    assert path.read_bytes() == before


def test_another_site_s_key_does_not_let_a_certificate_in(path: Path) -> None:
    roster, (key, csr) = Roster(path), pki.new_site_key_and_csr("A")
    roster.enroll(issued("A", csr))
    roster.enroll(issued("B"))
    crossed = issued("B", pki.create_csr("B", key))
    with pytest.raises(Refusal, match="a key that is not known"):
        roster.check("B", serial(crossed), crossed)


def test_a_certificate_that_cannot_be_noted_is_not_admitted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster, (_, csr) = Roster(path), pki.new_site_key_and_csr("A")
    roster.enroll(issued("A", csr))

    def full(*_: object, **__: object) -> None:
        raise StorageFailed("roster.json must be written, but No space left on device")

    monkeypatch.setattr("server.roster.write_file", full)
    renewed = issued("A", csr)
    with pytest.raises(Refusal, match="No space left"):
        roster.check("A", serial(renewed), renewed)
