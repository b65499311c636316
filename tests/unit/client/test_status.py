import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from client import approval, journal, presence, screen, status
from client.approval import require_approval
from client.config import SiteHome
from client.outbox import Outbox, RoundKey
from client.presence import Presence
from client.spending import Spending
from common.errors import InvalidInput, JobWaits
from common.files import make_private
from common.job import SignedJob
from common.privacy.accounting import GaussianSteps, epsilon
from common.privacy.rdp_filter import RdpFilter
from server.link import LinkServer

Manifest = Callable[..., SignedJob]
Capture = pytest.CaptureFixture[str]
Serving = Callable[[Callable[[str, str], bytes | None]], LinkServer]

NOISY = GaussianSteps(0.05, 1.3, 4)
BARE = GaussianSteps(0.05, 0.0, 4)


class Homes(Protocol):
    """The fixture of that name."""

    def make(self, site: str = "A", **options: object) -> Path: ...
    def load(self, site: str = "A", **options: object) -> SiteHome: ...


def accept(home: SiteHome, signed: SignedJob, events: list[GaussianSteps]) -> Outbox:
    outbox = Outbox.of(home)
    outbox.open_job(signed.job.sha256, signed.job.job.name, signed.to_bytes(), 9_000_000)
    for number, event in enumerate(events, start=1):
        outbox.reserve(RoundKey(signed.job.sha256, number, f"{number:064x}"), event, b"\0" * 4)
    return outbox


def shown(found: status.Status, capsys: Capture) -> str:
    status.show(found)
    return capsys.readouterr().out


def test_a_site_that_does_not_run_says_so_and_what_it_would_find(
    homes: Homes, capsys: Capture
) -> None:
    found = status.status(homes.load(port=1))
    assert not found.link.running
    assert not found.link.connected
    assert "127.0.0.1:1 refused the connection" in found.link.reason
    out = shown(found, capsys)
    assert "process      not running" in out
    assert "not connected: 127.0.0.1:1 refused the connection" in out
    assert "89 days left" in out


def test_a_server_that_would_take_the_site_is_not_called_broken(
    homes: Homes, serving: Serving
) -> None:
    link = serving(lambda site, job: None)
    found = status.status(homes.load(port=link.port))
    assert found.link.reason.endswith("answers and takes our certificate")


def test_a_running_site_is_read_from_its_own_words(homes: Homes, capsys: Capture) -> None:
    home = homes.load()
    with presence.hold(home.folder):
        assert "has not said" in status.status(home).link.reason
        presence.write(home.folder, Presence(4711, True, "2026-03-04T05:06:07Z", ""))
        out = shown(status.status(home), capsys)
    assert "running, pid 4711" in out
    assert "connected to 127.0.0.1:1 since 2026-03-04 05:06:07 UTC" in out
    assert not status.status(home).link.running


def test_epsilon_is_that_of_the_recorded_steps_at_each_delta(
    homes: Homes, manifest: Manifest, capsys: Capture
) -> None:
    home = homes.load()
    accept(home, manifest("wards"), [NOISY] * 3)
    accept(home, manifest("icu"), [NOISY] * 2).close_job(
        manifest("icu").job.sha256, "finished", "ef" * 32
    )
    found = status.status(home)
    assert [job.epsilon for job in found.jobs] == [
        epsilon([GaussianSteps(0.05, 1.3, 12)], 1e-5),
        epsilon([GaussianSteps(0.05, 1.3, 8)], 1e-5),
    ]
    together = epsilon([GaussianSteps(0.05, 1.3, 20)], 1e-4)
    assert found.spending.epsilon == together
    # No job stated a plan, so what was charged is all that is drawn; the filter counts more.
    cap = RdpFilter.for_cap(7.0, 1e-4)
    drawn = cap.epsilon([GaussianSteps(0.05, 1.3, 20)])
    assert found.spending.drawn == drawn > together
    assert found.spending.left == pytest.approx(7.0 - drawn)
    out = shown(found, capsys)
    assert f"{together:.3f} spent over all jobs, at delta 0.0001" in out
    assert f"{7 - drawn:.3f} left of 7 by {cap.name}, {drawn:.3f} drawn" in out
    wards = next(line.split() for line in out.splitlines() if line.startswith("wards"))
    assert wards[2:] == ["running", "3/12", f"{found.jobs[0].epsilon:.3f}", "6", "1e-05"]
    assert "no privacy" not in out


def test_an_open_job_holds_its_whole_plan(homes: Homes, manifest: Manifest) -> None:
    home, signed = homes.load(), manifest("wards")
    whole = GaussianSteps(0.05, 1.3, 48)
    outbox = Outbox.of(home)
    outbox.open_job(signed.job.sha256, "wards", signed.to_bytes(), 9_000_000, whole)
    outbox.reserve(RoundKey(signed.job.sha256, 1, "cd" * 32), NOISY, b"\0" * 4)
    cap = RdpFilter.for_cap(7.0, 1e-4)
    assert status.status(home).spending.drawn == cap.epsilon([whole])
    outbox.close_job(signed.job.sha256, "stopped", "")
    assert status.status(home).spending.drawn == cap.epsilon([NOISY])


def test_a_job_that_waits_for_a_person_is_listed(
    homes: Homes, manifest: Manifest, capsys: Capture
) -> None:
    home, signed = homes.load(policy={"approval": "person"}), manifest("wards")
    assert status.jobs(home) == ()
    with pytest.raises(JobWaits):
        require_approval(signed, home, Outbox.of(home).decisions())
    (job,) = status.jobs(home)
    assert (job.name, job.state, job.rounds) == ("wards", "waiting for approval", 0)
    assert "waiting for approval" in shown(status.status(home), capsys)
    approval.decide(home, "wards", "approve", "Dr Ada")
    assert [job.state for job in status.jobs(home)] == ["approved"]
    accept(home, signed, [NOISY])
    assert [job.state for job in status.jobs(home)] == ["running"]


def test_rounds_without_noise_are_counted_apart(
    homes: Homes, manifest: Manifest, capsys: Capture
) -> None:
    home = homes.load()
    accept(home, manifest("open", mode="none"), [BARE] * 2)
    found = status.status(home)
    assert found.spending.uncovered_rounds == 2
    assert found.spending.epsilon == 0
    assert found.jobs[0].epsilon is None
    assert "2 rounds without noise: no epsilon covers them" in shown(found, capsys)


def test_no_budget_is_left_past_the_maximum(homes: Homes, manifest: Manifest) -> None:
    home = homes.load()
    accept(home, manifest(), [GaussianSteps(0.5, 0.4, 40)])
    found = status.status(home)
    assert found.spending.epsilon > 7
    assert found.spending.left == 0


def test_an_epsilon_without_bound_is_null_in_json() -> None:
    none = float("inf")
    spending = Spending("record", "rdp-filter", 7.0, 1e-5, none, none, none, none, 0)
    found = status.as_json(spending)
    assert (found["epsilon"], found["drawn"], found["delta"]) == (None, None, 1e-5)
    assert spending.left == 0


def test_being_asked_makes_no_account(homes: Homes) -> None:
    home = homes.load()
    assert status.status(home).jobs == ()
    assert not home.account_path.exists()


def test_an_account_that_the_site_is_about_to_make_is_none_yet(
    homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = homes.load(port=1)
    seen: list[int] = []

    def look(path: Path) -> None:
        make_private(path)
        seen.append(len(status.status(home).jobs))

    monkeypatch.setattr(journal, "make_private", look)
    Outbox.of(home)
    assert seen == [0]


def test_what_is_wrong_with_a_certificate_is_said(homes: Homes, capsys: Capture) -> None:
    home = homes.load(days=2, age_days=5)
    found = status.status(home)
    assert found.certificate_days == -4  # three days ago and a moment
    assert "expired on" in found.certificate_fault
    (home.folder / "pki" / "site.key").chmod(0o640)
    assert "mode 0600" in shown(status.status(home), capsys)


def test_one_process_holds_a_home(tmp_path: Path) -> None:
    holder = (
        "import sys; from pathlib import Path; from client import presence\n"
        "with presence.hold(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert presence.is_running(tmp_path)
        with pytest.raises(InvalidInput, match="must have one running site, got a second"):
            presence.hold(tmp_path).__enter__()
        process.kill()
    assert not presence.is_running(tmp_path)
    with presence.hold(tmp_path):
        pass


@pytest.mark.parametrize("said", ["", "[]", '{"pid": 1}', '{"a": 1}', "[" * 9000])
def test_a_state_file_that_says_nothing_is_none(tmp_path: Path, said: str) -> None:
    (tmp_path / "state.json").write_text(said)
    assert presence.read(tmp_path) is None


def test_a_name_is_never_markup(capsys: Capture) -> None:
    screen.show(screen.table(["a"], [["[bold]x[/] :smile:"]]))
    assert "[bold]x[/] :smile:" in capsys.readouterr().out
