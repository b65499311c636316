"""A federation of real processes, as an operator sees it: figures, ids, JSON, a backup meanwhile.

The oracles are Prometheus' own parser, the two sides' logs, and a strict reader of JSON.
"""

import json
import logging
import re
import stat
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from client.cli import main as fl_client
from common.data.records import Record
from common.job import Job
from server.checkpoint import Checkpoints
from server.cli import main as fl_server
from server.restore import restore
from simulations.federation import Federation, _free_port

if TYPE_CHECKING:
    from tests.conftest import MakeJob

pytestmark = pytest.mark.slow

APPS = {"fl-server": fl_server, "fl-client": fl_client}
ROUNDS = 3
Samples = dict[tuple[str, ...], float]


@dataclass
class Watched(Federation):
    """Every process serves its figures and keeps a log file."""

    ports: dict[str, int] = field(default_factory=dict)

    def _spawn(self, name: str, arguments: Sequence[str]) -> None:
        self.ports[name] = _free_port()
        watched = ["--metrics", f"127.0.0.1:{self.ports[name]}", "--log-file"]
        super()._spawn(name, [*arguments, *watched])

    def figures(self, name: str) -> Samples:
        url = f"http://127.0.0.1:{self.ports[name]}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def log(self, name: str) -> Path:
        if name == "server":
            return self.server_home / "logs" / "server.log"
        return self.site_home(name) / "logs" / "site.log"


@dataclass
class Ran:
    """A finished job, its federation still there, and what was seen while it ran."""

    federation: Watched
    during: dict[str, Samples]
    backup: Path

    @property
    def job(self) -> Job:
        return self.federation.job

    def ids(self, name: str, round_: int) -> set[str]:
        """Every whole id of a round in a process' log."""
        beginning = f"id={self.job.sha256[:12]}/r{round_}/"
        text = self.federation.log(name).read_text()
        return {word for word in text.split() if word.startswith(beginning)}


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory,
    make_job: "MakeJob",
    rows: Callable[..., list[tuple[str, str]]],
) -> Iterator[Ran]:
    job = make_job(training={"rounds": ROUNDS, "deadline_s": 300.0})
    work = tmp_path_factory.mktemp("f")
    records = {
        site: [Record(text=text, label=label) for text, label in rows(count, offset=offset)]
        for site, count, offset in (("A", 36, 6500), ("B", 52, 6600))
    }
    during: dict[str, Samples] = {}
    with Watched(work, job, records) as federation:
        federation.submit()

        def observe(record: dict[str, Any]) -> None:
            if record["round"] == 1:
                during.update({name: federation.figures(name) for name in ("server", "A", "B")})
                federation.command("fl-server", "backup", str(work / "backup"))

        federation.watch(observe)
        yield Ran(federation, during, work / "backup")


def test_one_search_finds_a_round_at_both_ends(ran: Ran) -> None:
    for round_ in range(1, ROUNDS + 1):
        at_sites = [ran.ids(site, round_) for site in "AB"]
        assert all(len(ids) == 2 for ids in at_sites)  # its charge, then its bytes
        assert ran.ids("server", round_) == at_sites[0] | at_sites[1]
    text = ran.federation.log("server").read_text()
    for event in ("round starts", "round closed"):
        assert re.search(rf"{event}  id={ran.job.sha256[:12]}/r2 ", text)


def test_a_log_file_is_the_owners_and_says_what_stderr_says(ran: Ran) -> None:
    for name in ("server", "A", "B"):
        file = ran.federation.log(name)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        on_stderr = (ran.federation.work / f"{name}.log").read_text()
        assert file.read_text() in on_stderr


def test_no_record_is_in_a_log_or_a_figure(ran: Ran) -> None:
    texts = [record.text for rows in ran.federation.records.values() for record in rows]
    told = [ran.federation.log(name).read_text() for name in ("server", "A", "B")]
    told += [str(samples) for samples in ran.during.values()]
    assert not [text for text in texts if any(text in one for one in told)]


def test_figures_follow_a_job_under_way(ran: Ran) -> None:
    server, site = ran.during["server"], ran.during["A"]
    assert server["veiltune_server_site_connected", "A"] == 1
    assert server["veiltune_server_jobs", "running"] == 1
    assert server["veiltune_server_job_round", ran.job.sha256[:12], "wards"] >= 1
    assert server["veiltune_server_updates_total", "accepted"] >= 2
    assert site["veiltune_site_connected",] == 1
    assert site["veiltune_site_jobs", "running"] == 1
    assert site["veiltune_site_charged_rounds_total",] >= 1
    after = ran.federation.figures("server")
    assert after["veiltune_server_jobs", "finished"] == 1
    assert after["veiltune_server_round_duration_seconds_count",] == ROUNDS
    limit = site["veiltune_site_epsilon_limit",]
    drawn = ran.federation.figures("B")["veiltune_site_epsilon_drawn",]
    assert 0.99 * 6 < drawn <= limit == 6


def test_a_backup_taken_in_the_middle_is_whole(ran: Ran, tmp_path: Path) -> None:
    done = restore(tmp_path / "server", ran.backup)
    assert (done.jobs, done.sites) == (1, 2)
    kept = Checkpoints(f"sqlite:///{tmp_path / 'server' / 'state.db'}")
    ((row),) = kept.jobs()
    closed = kept.rounds(row.sha256)
    latest = kept.latest(row.sha256)
    assert latest is not None
    assert [record.round for record in closed] == list(range(latest[0] + 1))
    assert not list((tmp_path / "server").rglob("root.key"))


def strict(text: str) -> Any:  # noqa: ANN401 -- what JSON can hold
    def never(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(text, parse_constant=never)
    assert text == json.dumps(found, indent=2) + "\n"
    return found


# Where keys are names that people gave.
NAMED = {"labels", "population"}


def keys(value: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from () if key in NAMED else keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item)


@pytest.fixture
def shown(ran: Ran, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """Run a command of the server or of site A; its JSON, whose style was checked."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level

    def show(program: str, *words: str) -> Any:  # noqa: ANN401
        home = (
            ran.federation.site_home("A") if program == "fl-client" else ran.federation.server_home
        )
        site = ["--site", "A"] if program == "fl-client" else []
        capsys.readouterr()
        assert APPS[program]([*site, "--home", str(home), *words, "--json"]) == 0
        found = strict(capsys.readouterr().out)
        assert isinstance(found, dict | list)
        assert [key for key in keys(found) if not re.fullmatch("[a-z][a-z0-9_]*", key)] == []
        return found

    yield show
    root.handlers = handlers
    root.setLevel(level)


def test_every_listing_is_json_of_one_style(ran: Ran, shown: Callable[..., Any]) -> None:
    name, sha256 = ran.job.job.name, ran.job.sha256
    assert shown("fl-server", "jobs")[0]["sha256"] == sha256
    assert shown("fl-server", "show", name)["sha256"] == sha256
    assert shown("fl-client", "status")["link"]["connected"] is True
    assert shown("fl-client", "jobs")[0]["sha256"] == sha256
    job = str(ran.federation.work / "job.toml")
    assert shown("fl-client", "data", "check", "--job", job)[0]["records"] == 36
    assert shown("fl-client", "ledger", "show")["site"] == "A"
    assert shown("fl-client", "ledger", "verify")["site"] == "A"
    ran.federation.command("fl-client", "fetch", name, site="A")
    assert len(shown("fl-client", "predict", name, "w1 w2")) == 3
