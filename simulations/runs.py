"""A scenario's run in one process, or in a process for everybody."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context
from flwr.clientapp import ClientApp

from client.app import make_client_app
from client.rehearsal import rehearse
from client.site import Site
from common.adapter import LoadedAdapter, load_adapter
from common.errors import InvalidInput
from common.flower import new_context
from common.job import Job, SignedJob, sign_job
from common.link.identity import node_id
from common.model import require_base
from common.privacy.stream import KeySource
from server.app import run_job
from server.checkpoint import Checkpoints
from simulations.engine.engine import Engine
from simulations.engine.grid import StackedSites, Train
from simulations.engine.ray_engine import RayEngine
from simulations.engine.site import SimulatedSite, trainer_of
from simulations.federation import Federation
from simulations.grids import AbsentGrid, InProcessGrid, LocalGrid, StackedGrid
from simulations.homes import write_home
from simulations.scenario import Scenario
from simulations.seeded import seeded_keys

_rehearsed: set[str] = set()

# round, what the task is judged by
Observe = Callable[[int, float | None], None]
Around = Callable[[LocalGrid], LocalGrid]


def in_process(scenario: Scenario, work: Path, observe: Observe, *, seeded: bool) -> Path:
    """Server and all sites in this process; the outcome folder below ``work``.

    Sites draw as real ones do, so that a job without privacy ends as it does over the link; with
    ``seeded`` they draw by the scenario's seed, as the stacked grid's do.
    """
    signed = sign_job(scenario.job, Ed25519PrivateKey.generate())
    nodes = {
        node_id(site): _node(scenario, site, signed, work, seeded) for site in scenario.job.sites
    }
    checkpoints = Checkpoints(f"sqlite:///{work / 'state.db'}")
    checkpoints.add_job(signed)
    run_job(
        signed,
        _some_away(InProcessGrid(nodes), scenario),
        checkpoints,
        work / "outcome",
        grid_name="inprocess",
        observe=lambda record: observe(record.round, record.score),
        seeded=seeded and scenario.job.is_private,
        pause_s=_pause_s(scenario),
    )
    checkpoints.close()
    return work / "outcome"


def _some_away(grid: LocalGrid, scenario: Scenario) -> LocalGrid:
    absence = scenario.absence
    return grid if absence.is_nobody else AbsentGrid(grid, absence, scenario.seed)


def _pause_s(scenario: Scenario) -> float | None:
    """Where a draw decides who is away, the next is made at once; else the server's own pause."""
    return None if scenario.absence.is_nobody else 0.0


def _node(
    scenario: Scenario, site: str, signed: SignedJob, work: Path, seeded: bool
) -> tuple[ClientApp, Context]:
    home = write_home(
        work / "sites" / site, site, scenario.records[site], signed.job, signer=signed.signer
    )
    running = Site(home, seeded=seeded_keys(scenario.seed, site) if seeded else None)
    return make_client_app(lambda _: running), new_context(node_id(site))


def stacked(
    scenario: Scenario, work: Path, observe: Observe, *, around: Around = lambda grid: grid
) -> Path:
    """Server and all sites in this process, sites trained together; the outcome below ``work``.

    Noise comes from the scenario's seed, so that a private job promises nothing here. ``around``
    puts a grid between server and sites, as a study of attacks does.
    """
    signed = sign_job(scenario.job, Ed25519PrivateKey.generate())
    return _together(scenario, signed, Engine().train, work, observe, "stacked", around)


def on_ray(scenario: Scenario, work: Path, observe: Observe, *, workers: int = 0) -> Path:
    """As ``stacked``, with sites trained by ``workers`` actors; 0 for one a GPU or core.

    Raises:
        InvalidInput: Ray is not installed.
    """
    signed = sign_job(scenario.job, Ed25519PrivateKey.generate())
    with RayEngine(signed, scenario.records, scenario.seed, workers) as engine:
        return _together(scenario, signed, engine.train, work, observe, "ray")


def _together(
    scenario: Scenario,
    signed: SignedJob,
    train: Train,
    work: Path,
    observe: Observe,
    grid: str,
    around: Around = lambda grid: grid,
) -> Path:
    job = scenario.job
    adapter = load_adapter(job, require_base(job))
    keys = {site: seeded_keys(scenario.seed, site) for site in job.sites}
    sites = {
        node_id(site): SimulatedSite(site, signed, adapter, scenario.records[site], keys[site])
        for site in job.sites
    }
    _rehearse_once(job, adapter, keys[job.sites[0]])
    checkpoints = Checkpoints("sqlite://")  # a run that breaks off begins anew
    checkpoints.add_job(signed)
    run_job(
        signed,
        around(_some_away(StackedGrid(StackedSites(sites, train)), scenario)),
        checkpoints,
        work / "outcome",
        grid_name=grid,
        observe=lambda record: observe(record.round, record.score),
        seeded=job.is_private,
        pause_s=_pause_s(scenario),
    )
    checkpoints.close()
    return work / "outcome"


def _rehearse_once(job: Job, adapter: LoadedAdapter, keys: KeySource) -> None:
    """The self-checks, which are the same at all sites and for every run of this process.

    Raises:
        SelfCheckFailed: by the first that did not pass.
    """
    sections = job.model, job.adapter, job.privacy, job.metrics
    told = repr((job.job.task, job.data.labels, *sections))
    if told not in _rehearsed:
        site = job.sites[0]
        rehearse(trainer_of(job, adapter, site, keys), site, is_seeded=True)
        _rehearsed.add(told)


def over_link(scenario: Scenario, work: Path, observe: Observe) -> Path:
    """Real processes over TLS; the outcome folder, with evidence and root, below ``work``.

    Raises:
        InvalidInput: some site is to be away, which real sites are when they are.
    """
    if not scenario.absence.is_nobody:
        raise InvalidInput(
            "simulation.participation, dropout and stragglers must be absent with --grid link, got "
            f"{scenario.absence}"
        )
    with Federation(work, scenario.job, scenario.records) as federation:
        federation.submit()
        federation.watch(lambda closed: observe(closed["round"], _score(closed)))
        outcome = work / "outcome"
        shutil.copytree(federation.outcome, outcome)
        federation.export(outcome)
        return outcome


def _score(closed: Mapping[str, Any]) -> float | None:
    found: float | None = closed["accuracy"] if closed["entity_f1"] is None else closed["entity_f1"]
    return found
