"""A whole run by the two commands a user has: in one process, and as real processes over TLS."""

import csv
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import tomli_w
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from safetensors.numpy import load_file

from common.audit.verify import verify
from common.job import load_job
from simulations.federation import Federation, console_script
from simulations.simulate import main
from tests.reference_verifier import fault_of

if TYPE_CHECKING:
    from tests.conftest import TinyBase

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LABELS = ("cardiology", "surgery", "urology")
ROUNDS, STEPS, RATE = 3, 2, 0.25
KEYS = {"job_sha256", "task", "grid", "private", "sites", "rounds", "final", "seconds"}


@dataclass(frozen=True)
class Ran:
    """A finished simulation: what it left, and the homes."""

    out: Path
    work: Path

    @property
    def result(self) -> dict[str, Any]:
        loaded = json.loads((self.out / "result.json").read_text())
        assert isinstance(loaded, dict)
        return loaded


def write_rows(path: Path, count: int, offset: int = 0) -> Path:
    """Every text is unlike all others, so that it can be looked for."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(offset, offset + count):
            label = i % len(LABELS)
            words = [f"w{(37 * i + 11 * j) % 90 + 100 * label}" for j in range(3 + 5 * i % 23)]
            writer.writerow([f"note{i:05d} {' '.join(words)}", LABELS[label]])
    return path


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory, tiny_base: "TinyBase") -> Path:
    folder = tmp_path_factory.mktemp("scenario")
    content = {
        "job": {"name": "wards"},
        "model": {"base": str(tiny_base.folder), "sha256": tiny_base.sha256, "max_length": 48},
        "adapter": {"rank": 2, "alpha": 6, "targets": ["query", "value"], "seed": 17},
        "training": {
            "rounds": ROUNDS,
            "local_steps": STEPS,
            "learning_rate": 0.3,
            "quorum": 2,
            "deadline_s": 300.0,
        },
        "privacy": {
            "epsilon": 6.0,
            "delta": 1e-5,
            "clip_norm": 0.7,
            "sampling_rate": RATE,
        },
        "data": {"name": "notes", "labels": LABELS, "population": {"A": 60, "B": 60}},
        "evaluation": {"data": str(write_rows(folder / "dev.csv", 24, 900)), "records": 24},
        "simulation": {"data": str(write_rows(folder / "train.csv", 120)), "partition": "iid"},
    }
    path = folder / "wards.toml"
    path.write_text(tomli_w.dumps(content))
    return path


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def inprocess(tmp_path_factory: pytest.TempPathFactory, scenario: Path) -> Run:
    def run(*options: str) -> Ran:
        folder = tmp_path_factory.mktemp("inprocess")
        ran = Ran(folder / "out", folder / "work")
        places = "--out", str(ran.out), "--work", str(ran.work)
        assert main([str(scenario), "--grid", "inprocess", *options, *places]) == 0
        return ran

    return run


@pytest.fixture(scope="module")
def plain(inprocess: Run) -> Ran:
    """Without privacy, in one process."""
    return inprocess("--no-privacy")


@pytest.fixture(scope="module")
def private(inprocess: Run) -> Ran:
    return inprocess()


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory, scenario: Path) -> Ran:
    """Without privacy, as processes: typed as a script's name from inside its folder."""
    folder = tmp_path_factory.mktemp("l")  # short: it holds a Unix socket
    ran = Ran(folder / "out", folder / "w")
    done = subprocess.run(
        [
            *(sys.executable, "simulate.py", str(scenario), "--no-privacy", "--grid", "link"),
            *("--out", str(ran.out), "--work", str(ran.work)),
        ],
        cwd=ROOT / "simulations",
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return ran


@pytest.fixture(scope="module")
def again(linked: Ran) -> Iterator[Federation]:
    """The homes of that run, with the server up again and no site."""
    job = load_job(linked.work / "job.toml")
    federation = Federation(linked.work, job, {})
    federation.start_server()
    yield federation
    federation.close()


def test_both_grids_end_with_the_same_adapter_of_the_same_job(plain: Ran, linked: Ran) -> None:
    assert plain.result["job_sha256"] == linked.result["job_sha256"]
    assert (plain.result["grid"], linked.result["grid"]) == ("inprocess", "link")
    one, other = (load_file(r.out / "adapter/adapter_model.safetensors") for r in (plain, linked))
    assert one.keys() == other.keys()
    assert max(float(abs(one[name] - other[name]).max()) for name in one) <= 1e-6
    assert any(abs(one[name]).max() > 0 for name in one if "lora_B" in name), "nothing was learned"


def test_the_links_evidence_holds_for_both_verifiers(linked: Ran) -> None:
    data, root = ((linked.out / name).read_bytes() for name in ("evidence.zip", "root.pem"))
    weights = (linked.out / "adapter" / "adapter_model.safetensors").read_bytes()
    assert fault_of(data, root, weights) == ""
    claims = verify(data, root, weights).claims
    assert [claim for claim in claims if claim.status != "pass"] == []
    ends = {claim.subject: claim.found for claim in claims if claim.name == "ending"}
    assert ends == dict.fromkeys("AB", f"{ROUNDS * STEPS} steps charged in all")


@pytest.mark.parametrize("grid", ["plain", "linked", "private"])
def test_the_result_is_what_its_schema_says(request: pytest.FixtureRequest, grid: str) -> None:
    result = request.getfixturevalue(grid).result
    jsonschema.validate(result, json.loads((ROOT / "docs/result.schema.json").read_text()))
    assert result.keys() >= KEYS | {"adapter_sha256"}
    assert result["private"] is (grid == "private")
    assert result["final"].keys() >= {"accuracy", "macro_f1"}
    assert [site["name"] for site in result["sites"]] == ["A", "B"]
    for site in result["sites"]:
        assert site["steps"] == ROUNDS * STEPS
        assert (site["epsilon"] is None) is (grid != "private")
    assert [entry["round"] for entry in result["rounds"]] == [1, 2, 3]
    for entry in result["rounds"]:
        assert entry.keys() >= {"round", "accuracy", "bytes_up", "seconds"}
        assert entry["bytes_up"] > 0
        assert entry["bytes_down"] > 0


def test_epsilon_follows_from_the_steps_in_the_sites_own_accounts(private: Ran) -> None:
    for site in private.result["sites"]:
        account = private.work / "sites" / site["name"] / "account.db"
        with closing(sqlite3.connect(account)) as db:
            charges = [
                json.loads(body)["charge"]
                for (body,) in db.execute("SELECT body FROM entry ORDER BY seq")
                if json.loads(body)["kind"] == "reserved"
            ]
            events = [
                dp_event.SelfComposedDpEvent(
                    dp_event.PoissonSampledDpEvent(
                        charge["sampling_rate"],
                        dp_event.GaussianDpEvent(charge["noise_multiplier"]),
                    ),
                    charge["steps"],
                )
                for charge in charges
            ]
        assert len(events) == ROUNDS
        accountant = PLDAccountant()
        for event in events:
            accountant.compose(event)
        assert site["epsilon"] == pytest.approx(accountant.get_epsilon(site["delta"]), rel=1e-3)
        assert 0.9 * 6.0 < site["epsilon"] <= 6.0


def test_a_site_s_status_states_the_epsilon_of_the_result(private: Ran) -> None:
    for site in private.result["sites"]:
        home = private.work / "sites" / site["name"]
        done = subprocess.run(
            [
                *(console_script("fl-client"), "--site", site["name"], "--home", str(home)),
                *("jobs", "--json"),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=240,
        )
        (job,) = json.loads(done.stdout)
        assert job["epsilon"] == site["epsilon"]
        assert job["state"] == "finished"


def test_a_site_s_home_holds_its_own_texts_and_no_other_s(linked: Ran) -> None:
    homes = {site: linked.work / "sites" / site for site in "AB"}
    texts = {
        site: [json.loads(line)["text"].split()[0] for line in open_rows(home)]
        for site, home in homes.items()
    }
    assert len(texts["A"]) + len(texts["B"]) == 120
    everything = {site: content(home) for site, home in homes.items()}
    assert all(text.encode() in everything["A"] for text in texts["A"])
    assert not any(text.encode() in everything["A"] for text in texts["B"])
    assert not any(text.encode() in everything["B"] for text in texts["A"])
    at_server = content(linked.work / "server") + (linked.work / "server.log").read_bytes()
    assert not any(text.encode() in at_server for text in texts["A"] + texts["B"])


def open_rows(home: Path) -> list[str]:
    return (home / "records.jsonl").read_text(encoding="utf-8").splitlines()


def content(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("grid", ["plain", "linked"])
def test_peft_loads_the_adapter_that_the_result_names(
    request: pytest.FixtureRequest, grid: str, tiny_base: "TinyBase"
) -> None:
    import hashlib

    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    ran = request.getfixturevalue(grid)
    weights = ran.out / "adapter" / "adapter_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == ran.result["adapter_sha256"]
    base = AutoModelForSequenceClassification.from_pretrained(
        str(tiny_base.folder), num_labels=len(LABELS)
    )
    model = PeftModel.from_pretrained(base, str(ran.out / "adapter"))
    loaded = {name: value.detach().numpy() for name, value in model.named_parameters()}
    for name, value in load_file(weights).items():
        if "lora_B" in name:
            key = name.replace(".weight", ".default.weight")
            assert (loaded[key] == value).all()


def test_what_the_operator_sees_of_the_job(again: Federation) -> None:
    sha256 = again.job.sha256
    (row,) = json.loads(again.command("fl-server", "jobs", "--json"))
    assert (row["sha256"], row["state"], row["round"]) == (sha256, "finished", ROUNDS)
    shown = json.loads(again.command("fl-server", "show", "wards", "--json"))
    assert [entry["round"] for entry in shown["closed"]] == [0, 1, 2, 3]
    assert {site["name"]: site["steps"] for site in shown["spent"]} == {"A": 6, "B": 6}


def test_a_job_is_not_run_twice_and_a_finished_one_does_not_stop(again: Federation) -> None:
    assert "is here already" in again.command("fl-server", "submit", str(again.work / "job.toml"))
    done = subprocess.run(
        [console_script("fl-server"), "--home", str(again.server_home), "stop", "wards"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 2
    assert done.stderr == "error: job must be queued or running to be stopped, got finished\n"


@pytest.mark.slow
def test_a_site_fetches_the_adapter_and_predicts_with_it(again: Federation, linked: Ran) -> None:
    assert "the same as in the message that closed the job" in again.command(
        "fl-client", "fetch", "wards", site="A"
    )
    kept = again.site_home("A") / "adapters" / "wards"
    (weights,) = kept.rglob("adapter_model.safetensors")
    expected = load_file(linked.out / "adapter" / "adapter_model.safetensors")
    found = load_file(weights)
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in found)
    answer = again.command("fl-client", "predict", "wards", "w3 w17 w80", "--json", site="A")
    shares = {row["label"]: row["probability"] for row in json.loads(answer)}
    assert shares.keys() == set(LABELS)
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-5)
