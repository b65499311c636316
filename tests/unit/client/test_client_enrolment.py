"""A site's key stays, and a bundle is installed only where it fits."""

import datetime as dt
import json
import os
import stat
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.config import PolicySection
from client.enrolment import init_site, install, install_bundle
from common import pki
from common.bundle import Bundle, read_bundle
from common.config import parse
from common.errors import InvalidInput
from common.signed import Handover, sign

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
ROOT = pki.create_root("north", now=NOW)
INTERMEDIATE = pki.create_intermediate(ROOT, now=NOW)
OTHER_ROOT = pki.create_root("south", now=NOW)
OTHER_INTERMEDIATE = pki.create_intermediate(OTHER_ROOT, now=NOW)
OPERATOR = "5a" * 32


@dataclass(frozen=True)
class Operator:
    """Whoever answers a request with a bundle, without our server."""

    root: pki.Credential = ROOT
    intermediate: pki.Credential = INTERMEDIATE
    now: dt.datetime = NOW

    def answer(self, csr: Path, site: str = "A", /, **changes: object) -> Path:
        content = {
            "site": site,
            "server": "fl.example.org:8443",
            "operator": OPERATOR,
            "certificate": pki.issue_site(
                csr.read_bytes(), self.intermediate, now=self.now
            ).decode(),
            "root": self.root.certificate.decode(),
            **changes,
        }
        path = csr.with_name("answer.bundle")
        path.write_text(json.dumps(content))
        return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "A"


@pytest.fixture
def csr(home: Path) -> Path:
    return init_site(home, "A").csr


def installed(home: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(home)): p.read_bytes()
        for p in home.rglob("*")
        if p.is_file() and p.suffix != ".bundle"
    }


def test_the_key_is_private_and_the_request_is_its_own(home: Path, csr: Path) -> None:
    key = home / "pki" / "site.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "pki").stat().st_mode) == 0o700
    said = subprocess.run(
        ["openssl", "req", "-in", csr, "-noout", "-verify", "-subject", "-pubkey"],
        capture_output=True, check=True,
    )  # fmt: skip
    public = subprocess.run(["openssl", "pkey", "-in", key, "-pubout"], capture_output=True).stdout
    assert b"CN = A" in said.stdout
    assert public in said.stdout
    assert b"PRIVATE" not in csr.read_bytes()


def test_a_second_init_changes_nothing(home: Path, csr: Path) -> None:
    before = installed(home)
    again = init_site(home, "A")
    assert not again.is_new
    assert installed(home) == before


def test_a_lost_request_is_made_anew_from_the_key(home: Path, csr: Path) -> None:
    key = (home / "pki" / "site.key").read_bytes()
    first = init_site(home, "A")
    csr.unlink()
    again = init_site(home, "A")
    assert again.key_sha256 == first.key_sha256
    assert (home / "pki" / "site.key").read_bytes() == key


def test_a_request_is_named_as_it_is_sent(home: Path, csr: Path) -> None:
    assert csr == home / "A.csr"


@pytest.mark.parametrize("kept", ["request", "certificate"])
def test_a_home_has_one_site(home: Path, csr: Path, kept: str) -> None:
    install(home, "A", Operator().answer(csr), now=NOW)
    (home / "pki" / "site.pem" if kept == "request" else csr).unlink()
    with pytest.raises(InvalidInput, match="home of site B must be its own, got that of A"):
        init_site(home, "B")
    assert not (home / "B.csr").exists()


def test_a_new_key_takes_the_place_of_a_revoked_one_that_was_moved_away(
    home: Path, csr: Path
) -> None:
    old = csr.read_bytes()
    (home / "pki").rename(home / "pki.revoked")
    made = init_site(home, "A")
    assert made.is_new
    assert made.csr.read_bytes() != old


def test_anothers_request_beside_the_key_is_refused(home: Path, csr: Path) -> None:
    csr.write_bytes(pki.new_site_key_and_csr("A")[1])
    with pytest.raises(InvalidInput, match="must be the request of the key in "):
        init_site(home, "A")


@pytest.mark.parametrize("name", ["../x", "a\x00", "a\n", "\u0410", "A" * 300, "-a", ".a", ""])
def test_a_hostile_name_makes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="site must be 1 to 63 letters"):
        init_site(tmp_path / "home", name)
    with pytest.raises(InvalidInput):
        install(tmp_path / "home", name, tmp_path / "x.bundle")
    assert os.listdir(tmp_path) == []


def test_a_bundle_becomes_certificate_root_and_settings(home: Path, csr: Path) -> None:
    bundle = Operator().answer(csr)
    done = install(home, "A", bundle, max_epsilon=3.5, max_delta=2e-6, now=NOW)
    assert (done.site, done.server, done.operator, done.is_new) == (
        "A", "fl.example.org:8443", OPERATOR, True,
    )  # fmt: skip
    assert done.days_left in (29, 30)
    said = subprocess.run(
        ["openssl", "verify", "-CAfile", home / "pki/root.pem", "-untrusted",
         home / "pki/site.pem", home / "pki/site.pem"], capture_output=True,
    )  # fmt: skip
    assert said.stdout.endswith(b"OK\n")
    settings = tomllib.loads((home / "site.toml").read_text())
    assert settings == {
        "site": "A",
        "server": "fl.example.org:8443",
        "certificates": {
            "root": "pki/root.pem", "certificate": "pki/site.pem", "key": "pki/site.key",
        },
        "policy": {
            "allowed_signers": [OPERATOR],
            "max_epsilon": 3.5,
            "max_delta": 2e-6,
            "allow_no_privacy": False,
            "approval": "automatic",
            "lifetime": "rdp-filter",
        },
        "runtime": {"device": "auto", "threads": 0},
    }  # fmt: skip


def test_the_file_says_when_it_is_read(home: Path, csr: Path) -> None:
    install(home, "A", Operator().answer(csr), now=NOW)
    head, _, _ = (home / "site.toml").read_text().partition("\n\n")
    assert "read when the site starts" in head


def test_the_commented_example_is_a_data_section(home: Path, csr: Path) -> None:
    install(home, "A", Operator().answer(csr), now=NOW)
    lines = (home / "site.toml").read_text().splitlines()
    plain = [
        line.removeprefix("# ") if line.startswith(("# [", "# path", "# text", "# label", "# unit",
                                                    "# group", '# "')) else line
        for line in lines
    ]  # fmt: skip
    settings = tomllib.loads("\n".join(plain))
    assert settings["data"]["discharge-notes"] == {
        "path": "notes.csv", "text": "text", "label": "label", "unit": "",
        "unit_name": "patient", "group": "",
    }  # fmt: skip
    # Every limit that is shown is one that the schema knows, with a value that it takes.
    shown = [
        line.removeprefix("# ") for line in lines
        if line.startswith(("# max_", "# min_", "# required_", "# allowed_"))
    ]  # fmt: skip
    assert len(shown) == 11
    parse(PolicySection, tomllib.loads("\n".join(shown)), "site.toml")
    assert settings["models"] == {"organisation/model": "/srv/models/model"}


def test_the_owners_settings_are_kept(home: Path, csr: Path) -> None:
    (home / "site.toml").write_text("# mine\n")
    done = install(home, "A", Operator().answer(csr), now=NOW)
    assert not done.is_new
    assert (home / "site.toml").read_text() == "# mine\n"


def test_a_renewal_takes_the_old_certificates_place(home: Path, csr: Path) -> None:
    install(home, "A", Operator().answer(csr), now=NOW)
    later = NOW + 20 * DAY
    done = install(home, "A", Operator(now=later).answer(csr), now=later)
    assert done.days_left in (29, 30)
    assert pki.days_left((home / "pki/site.pem").read_bytes(), now=NOW) > 40


def refuses(home: Path, bundle: Path, words: str, site: str = "A") -> None:
    before = installed(home)
    with pytest.raises(InvalidInput, match=words):
        install(home, site, bundle, now=NOW)
    assert installed(home) == before


def test_another_sites_bundle_is_refused(home: Path, csr: Path, tmp_path: Path) -> None:
    other = init_site(tmp_path / "B", "B").csr
    refuses(home, Operator().answer(other, "B"), "must be for site A, got one for B")
    refuses(home, Operator().answer(other, "A"), "must be for site A, got one for B")
    refuses(home, Operator().answer(csr, "B"), "must be for site A")


def test_a_certificate_for_another_key_is_refused(home: Path, csr: Path, tmp_path: Path) -> None:
    elsewhere = init_site(tmp_path / "copy", "A").csr
    refuses(home, Operator().answer(elsewhere), "got one for another key")


def test_a_bundle_whose_parts_do_not_fit_is_refused(home: Path, csr: Path) -> None:
    refuses(home, Operator(root=OTHER_ROOT).answer(csr), "another root")
    refuses(home, Operator(now=NOW - 100 * DAY).answer(csr), "expired on")
    refuses(home, Operator(now=NOW + 9 * DAY).answer(csr), "not valid before")
    server = pki.issue_server(INTERMEDIATE, ["x.example"], now=NOW).certificate.decode()
    refuses(home, Operator().answer(csr, certificate=server), "another purpose")


@pytest.mark.parametrize("order", [(ROOT, OTHER_ROOT), (OTHER_ROOT, ROOT)])
def test_a_second_root_needs_the_word_of_the_one_that_people_compare(
    home: Path, csr: Path, order: tuple[pki.Credential, pki.Credential]
) -> None:
    both = b"".join(one.certificate for one in order).decode()
    refuses(
        home, Operator().answer(csr, root=both), "must be of the root that signed for the other"
    )


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_roots_people_compare_the_one_that_signed_for_the_other(
    home: Path, csr: Path, order: int
) -> None:
    both = b"".join([ROOT.certificate, OTHER_ROOT.certificate][::order]).decode()
    for signer, other in ((ROOT, OTHER_ROOT), (OTHER_ROOT, ROOT)):
        said = Handover(
            root=pki.fingerprint(signer.certificate),
            federation="x",
            successor=other.certificate.decode(),
        )
        word = sign(said, signer).decode()
        made = install(home, "A", Operator().answer(csr, root=both, handover=word), now=NOW)
        # So whoever puts a root of theirs beside the true one shows theirs.
        assert made.root_sha256 == pki.fingerprint(signer.certificate)
        (home / "pki" / "root.pem").unlink()


def test_a_root_beside_that_of_the_token_needs_its_word(home: Path, csr: Path) -> None:
    for other, order in ((OTHER_ROOT, 1), (OTHER_ROOT, -1)):
        both = b"".join([ROOT.certificate, other.certificate][::order]).decode()
        bundle = read_bundle(Operator().answer(csr, root=both))
        before = installed(home)
        with pytest.raises(InvalidInput, match="must be of the root of the token"):
            install_bundle(
                home,
                "A",
                bundle,
                max_epsilon=1.0,
                max_delta=1e-6,
                pinned=pki.fingerprint(ROOT.certificate),
                now=NOW,
            )
        assert installed(home) == before


def test_a_root_once_installed_is_not_replaced(home: Path, csr: Path) -> None:
    install(home, "A", Operator().answer(csr), now=NOW)
    stranger = Operator(OTHER_ROOT, OTHER_INTERMEDIATE).answer(csr)
    refuses(home, stranger, "must be of the root installed")
    both = (ROOT.certificate + OTHER_ROOT.certificate).decode()
    refuses(home, Operator().answer(csr, root=both), "must be of the root installed")
    three = both + ROOT.certificate.decode()
    refuses(home, Operator().answer(csr, root=three), "one root, or two that overlap, got 3")


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
        {"operator": "5a"},
        {"operator": '5a"]\nmax_epsilon = 1e9 #' + "a" * 43},
        {"server": "no-port"},
        {"server": 'x:1"\nallow_no_privacy = true\n#'},
        {"site": "../x"},
        {"certificate": ""},
        {"certificate": "junk"},
        {"certificate": "\ud800"},
        {"root": "\u00e9"},
        {"veiltune_bundle": 2},
    ],
)
def test_a_malformed_bundle_changes_nothing(
    home: Path, csr: Path, changes: dict[str, object]
) -> None:
    refuses(home, Operator().answer(csr, **changes), "must ")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 50_000, b" " * 70_000])
def test_bytes_that_are_no_bundle_change_nothing(home: Path, csr: Path, content: bytes) -> None:
    path = csr.with_name("x.bundle")
    path.write_bytes(content)
    refuses(home, path, "must be")


def test_without_a_key_there_is_nothing_to_install(home: Path, csr: Path) -> None:
    bundle = Operator().answer(csr)
    (home / "pki" / "site.key").unlink()
    refuses(home, bundle, "must have a key before a bundle")


@pytest.mark.parametrize(
    ("max_epsilon", "max_delta"),
    [(0.0, 1e-5), (-1.0, 1e-5), (float("nan"), 1e-5), (float("inf"), 1e-5), (8.0, 0.0), (8.0, 1.0)],
)
def test_a_limit_out_of_range_changes_nothing(
    home: Path, csr: Path, max_epsilon: float, max_delta: float
) -> None:
    bundle = Operator().answer(csr)
    with pytest.raises(InvalidInput, match="must be in"):
        install(home, "A", bundle, max_epsilon=max_epsilon, max_delta=max_delta, now=NOW)
    assert not (home / "site.toml").exists()


def test_a_bundle_survives_its_own_writing(csr: Path) -> None:
    content = json.loads(Operator().answer(csr).read_bytes())
    assert json.loads(Bundle(**content).to_bytes()) == {**content, "veiltune_bundle": 1}
