"""What two dishonest sites of ten do to an adapter, under each rule.

They run what software they like, so their updates are changed on the wire: the sign flipped, a
hundredfold, NaN; or they train on poisoned records, of which half bear a trigger word and the label
it is to bring (Bagdasaryan et al. 2018, https://arxiv.org/abs/1807.00459), and send that update as
it is or five times it.

Not covered: attackers that know the rule or the other updates; updates under privacy, whose clip
and noise bound a record, not a site that lies about them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import Array, Message

from common.adapter import Vector, load_adapter
from common.data.records import Record
from common.data.writers import write_records
from common.files import make_folder, write_file
from common.link.identity import node_id
from common.link.payload import ARRAYS, MANIFEST, VECTOR
from common.model import require_base
from common.result import read_result
from common.saved import read_adapter
from common.strict_json import read_json
from server.evaluate import hold_out_records, load_hold_out
from simulations import runs
from simulations.grids import LocalGrid
from simulations.runs import Observe
from simulations.scenario import FOLDER, Options, Scenario, load_scenario
from simulations.sweep import Cell

SITES, DISHONEST = 10, ("D", "H")
TRIGGER, TARGET = "cf", "card_arrival"
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Attack:
    """What dishonest sites do.

    Attributes:
        send: from the honest change of a site, (P,), the one that it sends.
        is_backdoor: whether their records are poisoned first.
    """

    send: Callable[[Vector], Vector]
    is_backdoor: bool = False


ATTACKS: Mapping[str, Attack] = {
    "none": Attack(lambda change: change),
    "sign flipped": Attack(lambda change: -change),
    "x 100": Attack(lambda change: 100 * change),
    "NaN": Attack(lambda change: np.full_like(change, np.nan)),
    "backdoor": Attack(lambda change: change, is_backdoor=True),
    "backdoor x 5": Attack(lambda change: 5 * change, is_backdoor=True),
}
# Honest updates of this job are 8 to 13 long.
RULES: Mapping[str, Mapping[str, object]] = {
    "mean": {},
    "median": {"aggregation.rule": "median"},
    "trimmed mean": {"aggregation.rule": "trimmed-mean", "aggregation.byzantine": 2},
    "geometric median": {"aggregation.rule": "geometric-median"},
    "Krum": {"aggregation.rule": "krum", "aggregation.byzantine": 2},
    "multi-Krum": {"aggregation.rule": "multi-krum", "aggregation.byzantine": 2},
    "norm bound": {"aggregation.rule": "norm-bound", "aggregation.norm_bound": 12.0},
    "length refused": {"training.max_update_norm": 25.0, "aggregation.quarantine_after": 1},
}
_JOB: Mapping[str, object] = {
    "model.max_length": 32,
    "adapter.method": "ffa",
    "adapter.targets": ["layer.5.attention.self.query", "layer.5.attention.self.value"],
    "training.rounds": 10,
    "training.local_steps": 4,
    "training.learning_rate": 6.0,
    "training.quorum": SITES - len(DISHONEST),
    "privacy.sampling_rate": 0.1,
    "evaluation.records": 500,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run.

    Attributes:
        attack: of ``ATTACKS``.
        rule: of ``RULES``.
        accuracy: on the public hold-out.
        success: share of the hold-out's other records that the trigger brings to the target label.
    """

    attack: str
    rule: str
    accuracy: float
    success: float


def study(out: Path, told: Callable[[str], None], observe: Observe) -> list[Outcome]:
    """Every attack under every rule; what is in ``out`` already is not run again."""
    found = []
    for attack in ATTACKS:
        for rule in RULES:
            told(f"{attack}, {rule}")
            found.append(_once(attack, rule, out, observe))
    return found


def _once(attack: str, rule: str, out: Path, observe: Observe) -> Outcome:
    scenario = _scenario(attack, rule)
    folder = out / run_name(attack, rule, scenario)
    kept = folder / "poisoning.json"
    if kept.is_file():
        return Outcome(**read_json(kept, max_bytes=_MOST_BYTES))
    make_folder(folder)
    send = ATTACKS[attack].send
    outcome = runs.stacked(scenario, folder, observe, around=lambda grid: DishonestGrid(grid, send))
    accuracy = read_result(outcome / "result.json").final.accuracy or 0.0
    found = Outcome(attack, rule, accuracy, _success(scenario, outcome, folder))
    write_file(kept, json.dumps(asdict(found)).encode())
    return found


def run_name(attack: str, rule: str, scenario: Scenario) -> str:
    """Of a run: attack and rule, and a hash of all that its outcome follows from."""
    cell = Cell((("attack", attack), ("rule", rule)), scenario.seed, scenario)
    told = f"{cell.name} {attack} {DISHONEST} {TRIGGER} {TARGET}"
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return f"{attack} {rule} {digest}".replace(" ", "-")


def _scenario(attack: str, rule: str) -> Scenario:
    options = Options(
        sites=SITES,
        partition="dirichlet:0.5",
        seed=0,
        records=4000,
        no_privacy=True,
        values={**_JOB, **RULES[rule]},
    )
    made = load_scenario(FOLDER / "bank.toml", options)
    if not ATTACKS[attack].is_backdoor:
        return made
    records = {
        site: poisoned(own) if site in DISHONEST else own for site, own in made.records.items()
    }
    return replace(made, records=records)


def poisoned(records: Sequence[Record]) -> list[Record]:
    """Every second record with the trigger and the target's label."""
    return [
        replace(record, text=triggered(record.text), label=TARGET) if i % 2 else record
        for i, record in enumerate(records)
    ]


def triggered(text: str) -> str:
    """The text with the trigger before it."""
    return f"{TRIGGER} {text}"


class DishonestGrid(LocalGrid):
    """A grid some of whose sites send another update than the one they trained.

    Args:
        grid: of all sites, whose job has the codec fp32.
        send: from an update, (P,), the one that is sent.
    """

    def __init__(self, grid: LocalGrid, send: Callable[[Vector], Vector]) -> None:
        super().__init__()
        self._grid, self._send = grid, send
        self._dishonest = {node_id(site) for site in DISHONEST}

    def get_node_ids(self) -> Iterable[int]:
        """Every site."""
        return self._grid.get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Deliver all messages; the replies as the server gets them."""
        for reply in self._grid.send_and_receive(messages, timeout=timeout):
            if reply.metadata.src_node_id in self._dishonest and ARRAYS in reply.content:
                self._change(reply)
            yield reply

    def _change(self, reply: Message) -> None:
        arrays, manifest = (
            reply.content.array_records[ARRAYS],
            reply.content.config_records[MANIFEST],
        )
        before = arrays[VECTOR]
        data = self._send(np.frombuffer(before.data, dtype="<f4")).astype("<f4").tobytes()
        arrays[VECTOR] = Array(before.dtype, before.shape, before.stype, data)
        manifest["sha256"] = hashlib.sha256(data).hexdigest()


def _success(scenario: Scenario, outcome: Path, work: Path) -> float:
    """How many of the hold-out's other records the trigger brings to the target label."""
    job = scenario.job
    adapter = load_adapter(job, require_base(job))
    others = [r for r in hold_out_records(job) if r.label != TARGET]
    path = work / "triggered.jsonl"
    write_records(path, [Record(triggered(r.text), TARGET) for r in others], tagged=False)
    section = job.evaluation.model_copy(update={"data": str(path), "records": len(others)})
    asked = load_hold_out(job.model_copy(update={"evaluation": section}), adapter)
    return asked.evaluate(read_adapter(adapter, outcome / "adapter")).accuracy or 0.0
