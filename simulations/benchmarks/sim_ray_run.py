"""One whole run for ``sim-ray``: ``KIND OUT SITES ROUNDS BATCH LENGTH``.

``KIND`` is ``ray_CPUS`` for Flower's own simulation with so many cores a client, ``stacked`` or
``stacked_bf16`` for ours, or ``start`` for all imports and nothing else. ``OUT`` gets the change of
the adapter, (P,) float32, as raw bytes.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from common.adapter import Vector
from common.errors import LinkDown
from common.log import configure
from common.model import quiet_transformers
from common.saved import read_adapter
from simulations import runs
from simulations.benchmarks import sim_jobs

STEPS = 3
RAY, START = "ray_", "start"
_NAME = "adapter"


def main(argv: list[str]) -> int:
    """Run one kind; the exit status."""
    kind, out = argv[0], Path(argv[1])
    sites, rounds, batch, length = map(int, argv[2:])
    configure(level="error")
    quiet_transformers()
    torch.set_num_threads(1)
    if kind.startswith(RAY):
        change = _stock(int(kind.removeprefix(RAY)), sites, rounds, batch, length)
    elif kind == START:
        change = np.zeros(0, np.float32)
    else:
        dtype = "bfloat16" if kind == "stacked_bf16" else "float32"
        change = _ours(sites, rounds, batch, length, dtype)
    out.write_bytes(change.astype("<f4").tobytes())
    return 0


def _ours(sites: int, rounds: int, batch: int, length: int, dtype: str) -> Vector:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        scenario = sim_jobs.make_scenario(
            work, sites, batch, length, rounds=rounds, local_steps=STEPS, dtype=dtype
        )
        outcome = runs.stacked(scenario, work / "run", lambda *_: None)
        adapter = sim_jobs.load(scenario.job)
        change: Vector = read_adapter(adapter, outcome / "adapter") - adapter.initial
        return change


class WholeFedAvg(FedAvg):
    """Flower's mean of every client; a lost reply, which Flower leaves out, ends the run.

    ``min_train_nodes`` says how many are asked. A share of 1 does not: Flower counts the clients
    that are there before it waits for the others.
    """

    def __init__(self, sites: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
        self._sites = sites

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As Flower's.

        Raises:
            LinkDown: some client's reply is missing or an error.
        """
        found = [reply for reply in replies if not reply.has_error()]
        if len(found) != self._sites:
            raise LinkDown(
                f"round {server_round} must have {self._sites} clients' replies, got {len(found)}"
            )
        return super().aggregate_train(server_round, found)


def _stock(cpus: int, sites: int, rounds: int, batch: int, length: int) -> Vector:
    """Flower's own simulation, with nothing of ours but the training data and the base.

    What a client calls has to be imported from elsewhere: this module is ``__main__`` here, and in
    Ray's actors ``__main__`` is another.
    """
    from flwr.simulation import run_simulation

    ended: list[Vector] = []
    start = sim_jobs.load(sim_jobs.make_job(sites, batch, length)).initial
    server, client = ServerApp(), ClientApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        strategy = WholeFedAvg(sites)
        first = ArrayRecord({_NAME: Array(start)})
        done = strategy.start(grid=grid, initial_arrays=first, num_rounds=rounds)
        ended.append(np.asarray(done.arrays[_NAME].numpy()))

    @client.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        own = int(context.node_config["partition-id"])
        examples = sim_jobs.make_examples(sites, batch, length)[own]
        adapter = sim_jobs.load(sim_jobs.make_job(sites, batch, length))
        state = np.asarray(message.content.array_records["arrays"][_NAME].numpy())
        change = sim_jobs.train_plainly(adapter, state, examples, STEPS)
        content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
            "arrays": ArrayRecord({_NAME: Array(state + change)}),
            "metrics": MetricRecord({"num-examples": batch}),
        }
        return Message(RecordDict(content), reply_to=message)

    resources: Any = {"client_resources": {"num_cpus": cpus, "num_gpus": 0.0}}
    run_simulation(server, client, num_supernodes=sites, backend_config=resources)
    change: Vector = ended[0] - start
    return change


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
