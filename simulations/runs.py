"""A scenario's run in one process, or in a process for everybody."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context
from flwr.clientapp import ClientApp

from client.app import make_client_app
from client.site import Site
from common.flower import new_context
from common.job import SignedJob, sign_job
from common.link.identity import node_id
from server.app import run_job
from server.checkpoint import Checkpoints
from simulations.federation import Federation
from simulations.grids import InProcessGrid
from simulations.homes import write_home
from simulations.scenario import Scenario
from simulations.seeded import seeded_keys

# round, what the task is judged by
Observe = Callable[[int, float | None], None]


def in_process(scenario: Scenario, work: Path, observe: Observe, *, seeded: bool) -> Path:
    """Server and all sites in this process; the outcome folder below ``work``."""
    signed = sign_job(scenario.job, Ed25519PrivateKey.generate())
    grid = InProcessGrid(
        {node_id(site): _node(scenario, site, signed, work, seeded) for site in scenario.job.sites}
    )
    checkpoints = Checkpoints(f"sqlite:///{work / 'state.db'}")
    checkpoints.add_job(signed)
    run_job(
        signed,
        grid,
        checkpoints,
        work / "outcome",
        grid_name="inprocess",
        observe=lambda record: observe(record.round, record.score),
        seeded=seeded and scenario.job.is_private,
    )
    checkpoints.close()
    return work / "outcome"


def _node(
    scenario: Scenario, site: str, signed: SignedJob, work: Path, seeded: bool
) -> tuple[ClientApp, Context]:
    home = write_home(
        work / "sites" / site, site, scenario.records[site], signed.job, signer=signed.signer
    )
    running = Site(home, seeded=seeded_keys(scenario.seed, site) if seeded else None)
    return make_client_app(lambda _: running), new_context(node_id(site))


def over_link(scenario: Scenario, work: Path, observe: Observe) -> Path:
    """Real processes over TLS; the outcome folder, with evidence and root, below ``work``."""
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
