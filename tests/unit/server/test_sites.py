"""What an operator is told of each site. The oracle is what the commands issued and revoked."""

import datetime as dt
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import pki
from server import cli
from server.daemon import Daemon
from server.enrolment import enroll, revoke
from server.roster import Issued
from server.sites import listing

NOW = dt.datetime(2026, 11, 28, 9, 30, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)

Capture = pytest.CaptureFixture[str]


def entry(
    serial: str,
    days: int,
    *,
    key: str = "ab",
    revoked: dt.datetime | None = None,
    retired: dt.datetime | None = None,
) -> Issued:
    return Issued(
        serial=serial,
        sha256="cd" * 32,
        key_sha256=key * 32,
        not_after=NOW + days * DAY,
        revoked=revoked,
        retired=retired,
    )


def test_a_site_is_told_by_the_certificate_that_stands_else_by_the_last() -> None:
    sites = {
        "D": (entry("1", 9, retired=NOW),),
        "C": (entry("2", -7), entry("3", -3)),
        "B": (entry("4", 5, revoked=NOW - DAY),),
        "A": (entry("5", 25, key="11", revoked=NOW), entry("6", 4), entry("7", 17)),
    }
    found = listing(sites, {"A"}, now=NOW)
    assert [(line["site"], line["state"], line["connected"]) for line in found] == [
        ("A", "admitted", True),
        ("B", "revoked", False),
        ("C", "expired", False),
        ("D", "of a root that was dropped", False),
    ]
    assert found[0]["key_sha256"] == "ab" * 32
    assert [line["certificate_until"][:10] for line in found] == [
        "2026-12-15", "2026-12-03", "2026-11-25", "2026-12-07",
    ]  # fmt: skip
    assert found[1]["revoked_at"] == "2026-11-27T09:30:00Z"
    assert {line["connected"] for line in listing(sites, None, now=NOW)} == {None}


@pytest.fixture
def key(home: Path, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Enrols a site of a home that has none; the sha256 of its key."""
    (home / "roster.json").unlink(missing_ok=True)

    def admit(site: str) -> str:
        csr = tmp_path / f"{site}.csr"
        csr.write_bytes(pki.new_site_key_and_csr(site)[1])
        return enroll(home, csr).key_sha256

    yield admit
    (home / "roster.json").unlink(missing_ok=True)


def show(home: Path, *argv: str) -> int:
    return cli.main(["--home", str(home), "sites", *argv])


def test_sites_are_listed_without_a_running_server(
    home: Path, key: Callable[[str], str], capsys: Capture
) -> None:
    assert show(home) == 0
    assert capsys.readouterr().out.startswith("no sites yet (invite one with: fl-server --home")
    keys = {site: key(site) for site in ("A", "north-clinic")}
    revoke(home, "north-clinic")
    assert show(home) == 0
    a, north = capsys.readouterr().out.splitlines()
    assert a.startswith("A             admitted, certificate until 20")
    assert a.endswith(f", no server runs, key {keys['A'][:16]}")
    assert north.startswith("north-clinic  revoked on 20")
    assert show(home / "nowhere") == 2


def test_a_running_server_says_who_is_connected(
    home: Path,
    daemon: Daemon,
    key: Callable[[str], str],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {site: key(site) for site in "AB"}
    monkeypatch.setattr(daemon.link, "connected", lambda: {"B"})
    assert show(home, "--json") == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert {(one["site"], one["key_sha256"], one["connected"]) for one in json.loads(told.out)} == {
        ("A", keys["A"], False),
        ("B", keys["B"], True),
    }
