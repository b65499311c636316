"""Backups: the oracles are SQLite's own command of the state, ``zipfile``, and files compared."""

import json
import os
import resource
import shutil
import sqlite3
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from common import pki
from common.errors import InvalidInput, StorageFailed
from common.job import SignedJob
from common.keys import new_key
from server import rotation
from server.archive import MANIFEST
from server.backup import backup
from server.charges import charged_steps
from server.checkpoint import Checkpoints, Receipt, RoundRecord
from server.cli import main
from server.config import load_server_config
from server.daemon import Daemon
from server.enrolment import enroll, init_server, invite, revoke
from server.invitations import Invitations
from server.publication import draft, publish, sign_draft
from server.restore import restore
from server.worker import Trainer

ROUNDS = 60


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "server"
    init_server(home, hosts=[], address="127.0.0.1:8443", listen="127.0.0.1:0")
    return home


def checkpoints_of(home: Path) -> Checkpoints:
    return Checkpoints(load_server_config(home).database)


def close_round(checkpoints: Checkpoints, sha256: str, round_: int) -> None:
    checkpoints.dispatch(sha256, round_, ["A", "B"])
    receipts = [
        Receipt(site, round_, f"{round_:064x}", steps=4, charged_steps=4, bytes_up=9, accepted=True)
        for site in ("A", "B")
    ]
    record = RoundRecord(round_, 0.5, 0.4, 18, 0.25, "", f"{round_:064d}")
    checkpoints.save_round(sha256, record, bytes([round_]) * 4000, receipts)


def a_job(home: Path, signed: SignedJob, state: str = "running", rounds: int = 2) -> str:
    checkpoints, sha256 = checkpoints_of(home), signed.job.sha256
    checkpoints.add_job(signed)
    for round_ in range(rounds):
        close_round(checkpoints, sha256, round_)
    checkpoints.set_state(sha256, state)  # type: ignore[arg-type]
    checkpoints.close()
    outcome = home / "jobs" / sha256 / "adapter"
    outcome.mkdir(parents=True)
    (outcome / "adapter.safetensors").write_bytes(b"weights of a round")
    return sha256


def site(home: Path, name: str, folder: Path) -> None:
    csr = folder / f"{name}.csr"
    csr.write_bytes(pki.new_site_key_and_csr(name)[1])
    enroll(home, csr)


def tree(home: Path) -> dict[str, bytes]:
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return list(connection.execute(query))


def dump(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())


def test_a_restored_home_is_the_one_that_was_backed_up_without_the_roots_key(
    home: Path, tmp_path: Path, signed: Callable[..., SignedJob]
) -> None:
    sha256 = a_job(home, signed(), "finished")
    site(home, "A", tmp_path)
    made = backup(home, tmp_path / "b")
    done = restore(tmp_path / "new", tmp_path / "b")
    expected = tree(home)
    assert expected.pop("pki/root.key")
    found = tree(tmp_path / "new")
    found.pop("state.db")
    expected.pop("state.db")
    assert found == expected
    assert f"jobs/{sha256}/adapter/adapter.safetensors" in found
    assert dump(tmp_path / "new" / "state.db") == dump(home / "state.db")
    assert (done.jobs, done.sites, done.before, made.left_out) == (1, 1, None, ())


def test_a_job_under_way_is_charged_for_all_that_may_have_been_asked_since(
    home: Path, tmp_path: Path, signed: Callable[..., SignedJob]
) -> None:
    job = signed().job
    sha256 = a_job(home, signed(), rounds=2)
    backup(home, tmp_path / "b")
    restore(tmp_path / "new", tmp_path / "b")
    restored = checkpoints_of(tmp_path / "new")
    every = {(round_, site) for round_ in range(1, job.training.rounds + 1) for site in job.sites}
    assert every <= set(restored.dispatched(sha256))
    charged = charged_steps(
        restored.receipts(sha256), restored.dispatched(sha256), job.training.local_steps
    )
    # Replies stated 8 steps up to round 1; of every later round none is there.
    assert charged["A"] == 8 + (job.training.rounds - 1) * job.training.local_steps
    restored.close()


def test_a_backup_is_for_its_owner_alone_whatever_the_umask(home: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        backup(home, tmp_path / "b")
        restore(tmp_path / "new", tmp_path / "b")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    for path in (tmp_path / "new", *(tmp_path / "new").rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077


def test_the_roots_key_stays_out_whatever_it_is_called(home: Path, tmp_path: Path) -> None:
    key = (home / "pki/root.key").read_bytes()
    (home / "pki" / "spare.pem").write_bytes(key)
    (home / "moved").mkdir()
    (home / "moved" / "offline").write_bytes(b"# the key of our root\n" + key)
    backup(home, tmp_path / "b")
    root = x509.load_pem_x509_certificate((home / "pki/root.pem").read_bytes()).public_key()
    keys = 0
    with zipfile.ZipFile(tmp_path / "b") as archive:
        for name in archive.namelist():
            if b"PRIVATE" in (data := archive.read(name)):
                assert load_pem_private_key(data, None).public_key() != root
                keys += 1
    assert keys == 3


def test_no_key_of_a_root_is_kept_while_roots_change(home: Path, tmp_path: Path) -> None:
    key = (home / "pki" / "root.key").read_bytes()
    rotation.begin(home, key)
    (home / "pki" / "next" / "root.key").rename(home / "pki" / "next" / "hidden.key")
    (home / "pki" / "root.retired.key").write_bytes(new_key())
    kept = backup(home, tmp_path / "b").manifest.files
    assert "pki/next/root.pem" in kept
    assert not {"pki/root.key", "pki/next/hidden.key", "pki/root.retired.key"} & set(kept)


def test_outcomes_of_jobs_under_way_logs_and_locks_stay_out(
    home: Path, tmp_path: Path, signed: Callable[..., SignedJob]
) -> None:
    a_job(home, signed(), "running")
    for name in ("logs/server.log", "cache/big", ".server.toml.1.tmp", "state.db-journal"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(b"" if "journal" in name else b"x")
    (home / "my notes.txt").write_text("a name with a space")
    (home / "link").symlink_to("/etc/passwd")
    made = backup(home, tmp_path / "b")
    assert {name.split("/")[0] for name in made.manifest.files} == {
        "pki",
        "server.toml",
        "state.db",
    }
    assert sorted(made.left_out) == ["link", "my notes.txt"]


def test_a_used_token_is_not_good_again_after_a_restore(home: Path, tmp_path: Path) -> None:
    invite(home, "A")
    assert Invitations(home).standing()
    made = backup(home, tmp_path / "b")
    restore(tmp_path / "new", tmp_path / "b")
    assert not Invitations(tmp_path / "new").standing()
    assert made.left_out == ()


def test_backups_of_a_database_in_use_are_each_one_moments_state(
    home: Path, tmp_path: Path, signed: Callable[..., SignedJob]
) -> None:
    checkpoints, job = checkpoints_of(home), signed()
    checkpoints.add_job(job)
    done = threading.Event()

    def work() -> None:
        for round_ in range(ROUNDS):
            close_round(checkpoints, job.job.sha256, round_)
        done.set()

    writer = threading.Thread(target=work)
    writer.start()
    seen: list[object] = []
    while not done.is_set() or not seen:
        file = tmp_path / f"b{len(seen)}"
        backup(home, file)
        restore(tmp_path / "new", file)
        database = tmp_path / "new" / "state.db"
        ((closed, last),) = rows(database, "SELECT count(*), max(round) FROM rounds")
        receipts = rows(database, "SELECT round, count(*) FROM receipts GROUP BY round")
        assert receipts == [(round_, 2) for round_ in range(int(str(closed)))]
        if closed:
            assert rows(database, "SELECT round, vector FROM adapters") == [
                (last, bytes([int(str(last))]) * 4000)
            ]
        seen.append(closed)
    writer.join()
    assert len(set(seen)) > 1, "some backup must fall between two rounds"


def test_a_backup_is_made_and_restored_of_a_running_server_which_goes_on(
    home: Path, tmp_path: Path, trainer: Trainer, signed: Callable[..., SignedJob]
) -> None:
    first = Daemon(home, trainer=trainer)
    first.start()
    try:
        first.checkpoints.add_job(signed())
        backup(home, tmp_path / "b")
        with pytest.raises(
            InvalidInput, match="must have no running server to be restored, got one on"
        ):
            restore(home, tmp_path / "b")
    finally:
        first.stop()
    restore(tmp_path / "new", tmp_path / "b")
    second = Daemon(tmp_path / "new", trainer=trainer)
    assert [row.state for row in second.checkpoints.jobs()] == ["queued"]
    second.start()
    second.stop()


@contextmanager
def no_more_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 2000, 60_000])
def test_a_backup_that_finds_no_room_is_absent(
    home: Path, tmp_path: Path, signed: Callable[..., SignedJob], size: int
) -> None:
    a_job(home, signed(), "finished")
    (home / "jobs" / "big").mkdir()
    before = tree(tmp_path)
    with no_more_than(size), pytest.raises(StorageFailed):
        backup(home, tmp_path / "b")
    assert tree(tmp_path) == before


def test_a_restore_that_finds_no_room_changes_nothing(
    home: Path, tmp_path: Path, signed: Callable[..., SignedJob]
) -> None:
    a_job(home, signed())
    backup(home, tmp_path / "b")
    before, names = tree(tmp_path), set(os.listdir(tmp_path))
    for target in (home, tmp_path / "new"):
        with no_more_than(3000), pytest.raises(StorageFailed):
            restore(target, tmp_path / "b")
    assert tree(tmp_path) == before
    assert set(os.listdir(tmp_path)) == names


def test_an_existing_file_is_kept_and_the_home_is_no_place_for_its_backup(
    home: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").write_text("mine")
    with pytest.raises(InvalidInput, match="must not exist yet"):
        backup(home, tmp_path / "b")
    assert (tmp_path / "b").read_text() == "mine"
    with pytest.raises(InvalidInput, match="outside of the home"):
        backup(home, home / "jobs" / "b")


def test_a_database_that_is_not_in_the_home_is_refused(home: Path, tmp_path: Path) -> None:
    toml = (home / "server.toml").read_text()
    for url in ("postgresql://u:secret@db/fl", f"sqlite:///{tmp_path}/elsewhere.db", "sqlite://"):
        (home / "server.toml").write_text(toml.replace("sqlite:///state.db", url))
        with pytest.raises(InvalidInput, match="database must be an SQLite file in the home") as e:
            backup(home, tmp_path / "b")
        assert "secret" not in str(e.value)


# A home that knows what the backup does not.


def a_later_round(home: Path, sha256: str, _: Path) -> None:
    close_round(checkpoints_of(home), sha256, 2)


def a_dispatch(home: Path, sha256: str, _: Path) -> None:
    checkpoints_of(home).dispatch(sha256, 2, ["A"])


def an_end(home: Path, sha256: str, _: Path) -> None:
    checkpoints_of(home).set_state(sha256, "finished")


def a_longer_head(home: Path, _: str, __: Path) -> None:
    with closing(sqlite3.connect(home / "state.db")) as db, db:
        db.execute("INSERT INTO heads VALUES ('A', 3, 'aa', 'bb', 'cc', '2026-01-01T00:00:00Z')")


def an_enrolment(home: Path, _: str, folder: Path) -> None:
    site(home, "B", folder)


def a_revocation(home: Path, _: str, __: Path) -> None:
    revoke(home, "A")


def a_signed_roster(home: Path, _: str, __: Path) -> None:
    publish(home, sign_draft(draft(home), (home / "pki" / "root.key").read_bytes()))


def a_change_of_roots(home: Path, _: str, __: Path) -> None:
    rotation.begin(home, (home / "pki" / "root.key").read_bytes())


def another_intermediate(home: Path, _: str, __: Path) -> None:
    rotation.renew_intermediate(home, (home / "pki" / "root.key").read_bytes())


def damage(home: Path, _: str, __: Path) -> None:
    (home / "state.db").write_bytes(b"not a database, and longer than a header" * 9)


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (a_later_round, "2 more dispatches"),
        (a_dispatch, "1 more dispatches"),
        (an_end, "job wards finished, which is running in the backup"),
        (a_longer_head, "a later ledger head of site A"),
        (an_enrolment, "of B issued since"),
        (a_revocation, "of A revoked since"),
        (a_signed_roster, "a roster signed since, number"),
        (a_change_of_roots, "a change of roots that began since"),
        (another_intermediate, "another intermediate, "),
        (damage, "must be a server's database"),
    ],
)
def test_a_home_that_knows_more_or_cannot_say_is_not_overwritten(
    home: Path,
    tmp_path: Path,
    signed: Callable[..., SignedJob],
    happens: Callable[[Path, str, Path], None],
    words: str,
) -> None:
    sha256 = a_job(home, signed())
    site(home, "A", tmp_path)
    backup(home, tmp_path / "b")
    happens(home, sha256, tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InvalidInput, match=f"{words}.*move .* away"):
        restore(home, tmp_path / "b")
    assert tree(tmp_path) == before


def test_a_change_of_roots_that_ended_since_is_not_undone(home: Path, tmp_path: Path) -> None:
    rotation.begin(home, (home / "pki" / "root.key").read_bytes())
    backup(home, tmp_path / "b")
    rotation.end(home, (home / "pki" / "next" / "root.key").read_bytes())
    with pytest.raises(InvalidInput, match="another federation or another root of it"):
        restore(home, tmp_path / "b")


def test_nor_is_one_whose_files_a_crash_left_in_their_place(home: Path, tmp_path: Path) -> None:
    rotation.begin(home, (home / "pki" / "root.key").read_bytes())
    backup(home, tmp_path / "b")
    ended = tmp_path / "ended"
    shutil.copytree(home, ended)
    rotation.end(ended, (ended / "pki" / "next" / "root.key").read_bytes())
    shutil.copy(ended / "pki" / "retirement.json", home / "pki" / "next")
    with pytest.raises(InvalidInput, match="a change of roots that ended since"):
        restore(home, tmp_path / "b")


def test_a_change_of_roots_that_is_in_both_stands_in_no_backup_s_way(
    home: Path, tmp_path: Path
) -> None:
    a_change_of_roots(home, "", tmp_path)
    a_signed_roster(home, "", tmp_path)
    backup(home, tmp_path / "b")
    assert restore(home, tmp_path / "b").before is not None


def test_a_home_that_knows_less_gives_way_and_is_kept(
    home: Path, tmp_path: Path, signed: Callable[..., SignedJob]
) -> None:
    backup(home, tmp_path / "empty")
    sha256 = a_job(home, signed())
    backup(home, tmp_path / "b")
    (home / "state.db").unlink()
    before = tree(home)
    done = restore(home, tmp_path / "b")
    assert checkpoints_of(home).latest(sha256) == (1, bytes([1]) * 4000)
    assert done.before is not None
    assert tree(done.before) == before
    with pytest.raises(InvalidInput, match="got a database"):
        restore(home, tmp_path / "empty")


def test_another_federations_home_is_not_overwritten(home: Path, tmp_path: Path) -> None:
    backup(home, tmp_path / "b")
    init_server(tmp_path / "other", hosts=[], address="127.0.0.1:8443", listen="127.0.0.1:0")
    with pytest.raises(InvalidInput, match="another federation"):
        restore(tmp_path / "other", tmp_path / "b")


# Files that are no backups of ours. Each is a whole one with one thing changed.

Members = list[tuple[zipfile.ZipInfo, bytes]]


def members(file: Path) -> Members:
    with zipfile.ZipFile(file) as archive:
        return [(info, archive.read(info)) for info in archive.infolist()]


def rewrite(file: Path, content: Members) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for info, data in content:
            archive.writestr(info, data, compress_type=info.compress_type)


def extra(name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o600) -> Callable[..., None]:
    """A member more, which the manifest names rightly."""

    def change(content: Members) -> None:
        import hashlib

        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        info.external_attr = mode << 16
        (at,) = [i for i, (one, _) in enumerate(content) if one.filename == MANIFEST]
        manifest = json.loads(content[at][1])
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        content[at] = (content[at][0], json.dumps(manifest).encode())
        content.append((info, data))

    return change


def deflated(content: Members) -> None:
    extra("bomb", b"\0" * 5_000_000)(content)
    content[-1][0].compress_type = zipfile.ZIP_DEFLATED


def missing(content: Members) -> None:
    content[:] = [(info, data) for info, data in content if info.filename != "server.toml"]


def unnamed(content: Members) -> None:
    content.append((zipfile.ZipInfo("stranger"), b"x"))


def changed(content: Members) -> None:
    content[0] = (content[0][0], b"%" + content[0][1][1:])


def shorter(content: Members) -> None:
    content[0] = (content[0][0], content[0][1][:-1])


def longer(content: Members) -> None:
    content[0] = (content[0][0], content[0][1] + b"\n")


def no_manifest(content: Members) -> None:
    content.pop()


def of_a_later_version(content: Members) -> None:
    content[-1] = (content[-1][0], content[-1][1].replace(b'"version": 1', b'"version": 2'))


def another_root(content: Members) -> None:
    manifest = json.loads(content[-1][1]) | {"root_sha256": "ab" * 32}
    content[-1] = (content[-1][0], json.dumps(manifest).encode())


HOSTILE = {
    "slip": (extra("../escaped"), "plain relative path"),
    "absolute": (extra("/tmp/escaped"), "plain relative path"),
    "dots": (extra("pki/../../escaped"), "plain relative path"),
    "hidden": (extra(".ssh/authorized_keys"), "plain relative path"),
    "backslash": (extra("pki\\..\\escaped"), "plain relative path"),
    "a-folder": (extra("folder/"), "plain relative path"),
    "long": (extra("a" * 300), "plain relative path"),
    "deep": (extra("/".join("a" * 20)), "plain relative path"),
    "symlink": (extra("link", b"/etc/passwd", stat.S_IFLNK | 0o777), "must be a plain file"),
    "device": (extra("null", b"", stat.S_IFCHR | 0o666), "must be a plain file"),
    "bomb": (deflated, "must be a plain file, neither packed"),
    "twice": (extra("server.toml"), "one twice"),
    "twice-by-case": (extra("SERVER.toml"), "one twice"),
    "file-and-folder": (extra("server.toml/x"), "a file or a folder"),
    "missing": (missing, "the files of its manifest"),
    "unnamed": (unnamed, "the files of its manifest"),
    "changed": (changed, "server.toml must be as it was backed up"),
    "shorter": (shorter, "server.toml must be as it was backed up"),
    "longer": (longer, "server.toml must be as it was backed up"),
    "no-manifest": (no_manifest, "must have a manifest.json"),
    "later": (of_a_later_version, "version must be 1, got 2"),
    "another-root": (another_root, "root must be abababababab"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_a_hostile_file_is_refused_and_leaves_nothing(
    home: Path, tmp_path: Path, kind: str
) -> None:
    change, words = HOSTILE[kind]
    backup(home, tmp_path / "b")
    content = members(tmp_path / "b")
    change(content)
    rewrite(tmp_path / "b", content)
    names = set(os.listdir(tmp_path))
    with pytest.raises(InvalidInput, match=words):
        restore(tmp_path / "new", tmp_path / "b")
    assert set(os.listdir(tmp_path)) == names
    assert not Path("/tmp/escaped").exists()


def test_members_that_share_their_bytes_are_refused(home: Path, tmp_path: Path) -> None:
    # Ten thousand names for one run of bytes: no member is packed, and together they fill a disk.
    backup(home, tmp_path / "b")
    with zipfile.ZipFile(tmp_path / "b", "a") as archive:
        archive.writestr(zipfile.ZipInfo("big"), b"\0" * 100_000)
        big = archive.getinfo("big")
        for number in range(20):
            info = zipfile.ZipInfo(f"copy{number}")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(info, name, getattr(big, name))
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
    with pytest.raises(InvalidInput, match="no larger than its"):
        restore(tmp_path / "new", tmp_path / "b")


def test_a_cut_or_altered_file_never_passes(home: Path, tmp_path: Path) -> None:
    backup(home, tmp_path / "b")
    whole = (tmp_path / "b").read_bytes()
    altered = [whole[:length] for length in range(0, len(whole), 97)]
    for place in range(0, len(whole), 89):
        altered.append(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
    passed = []
    for number, data in enumerate(altered):
        (tmp_path / "c").write_bytes(data)
        try:
            restore(tmp_path / f"new{number}", tmp_path / "c")
        except InvalidInput:
            assert not (tmp_path / f"new{number}").exists()
        else:
            passed.append(number)
    # Dates, versions and the like of ZIP's own may differ: what comes out is the same.
    expected = tree(home)
    expected.pop("pki/root.key")
    for number in passed:
        assert tree(tmp_path / f"new{number}") == expected


@pytest.mark.usefixtures("_logs_aside")
def test_the_commands_say_what_they_did(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--home", str(home), "backup", str(tmp_path / "b")]) == 0
    said = capsys.readouterr()
    assert f"server backed up to {tmp_path / 'b'}\n  holds        8 files, " in said.out
    assert main(["--home", str(home), "backup", str(tmp_path / "b")]) == 2
    (home / "my notes.txt").write_text("x")
    assert main(["--home", str(home), "backup", str(tmp_path / "c")]) == 1
    assert "error: my notes.txt must be" in capsys.readouterr().err
    assert main(["--home", str(tmp_path / "new"), "restore", str(tmp_path / "b")]) == 0
    said = capsys.readouterr()
    assert "holds        0 jobs, 0 sites\n" in said.out
    assert f"fl-server --home {tmp_path / 'new'} start" in said.out
