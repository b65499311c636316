"""Jobs that look for entities, from files of words to a site's own predictions."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from peft import PeftModel
from transformers import AutoModelForTokenClassification, AutoTokenizer

from client import export
from client.cli import main as fl_client
from client.config import SiteConfig, SiteHome
from client.datacheck import inspect
from client.rehearsal import Rehearsal
from client.site import Site, make_trainer
from common.adapter import load_adapter, vector_sha256
from common.config import parse
from common.errors import InvalidInput, SelfCheckFailed
from common.job import Job
from common.privacy.selfcheck import CHECKS
from common.tasks.token_cls import per_example_loss

MakeJob = Callable[..., Job]
TAGS = ["O", "B-Drug", "I-Drug"]


def write(path: Path, count: int, seed: int) -> Path:
    """Rows whose words say their tag: from w0 none, from w100 a first, from w200 a further one."""
    dice, lines = random.Random(seed), []
    for _ in range(count):
        tags = dice.choices(TAGS, (5, 3, 2), k=dice.randrange(3, 20))
        for i, tag in enumerate(tags):
            if tag == "I-Drug" and (i == 0 or tags[i - 1] == "O"):
                tags[i] = "O"
        words = [f"w{100 * TAGS.index(tag) + dice.randrange(8)}" for tag in tags]
        lines.append(json.dumps({"tokens": words, "tags": tags}))
    path.write_text("\n".join(lines))
    return path


@dataclass
class Tagged:
    """A federation in one process whose sites hold words with tags."""

    fed: Any
    job: Job
    homes: dict[str, SiteHome]


@pytest.fixture
def tagged(
    make_job: MakeJob, federation: Callable[..., Any], tmp_path: Path
) -> Callable[..., Tagged]:
    def make(**sections: Any) -> Tagged:  # noqa: ANN401
        public = write(tmp_path / "public.jsonl", 24, 1)
        job = make_job(
            job={"name": "drugs", "task": "token-cls"},
            data={"labels": TAGS},
            evaluation={"data": str(public), "words": "tokens"},
            **sections,
        )
        mapped = {"notes": {"path": "rows.jsonl", "words": "tokens", "tags": "tags"}}
        policy = {"allow_no_privacy": not job.is_private, "max_epsilon": 50.0, "max_delta": 1e-4}
        fed = federation(job)
        homes = {}
        for number, (name, one) in enumerate(fed.sites.items()):
            config = one.home.config.model_dump() | {"data": mapped}
            config["policy"] |= policy
            home = SiteHome(one.home.folder, parse(SiteConfig, config, "site.toml"))
            manifest = home.config.model_dump(mode="json", exclude_none=True)
            (home.folder / "site.toml").write_text(tomli_w.dumps(manifest))
            write(home.folder / "rows.jsonl", 50, 10 + number)
            one.home = homes[name] = home
        return Tagged(fed, job, homes)

    return make


@pytest.mark.slow
def test_a_private_job_passes_every_check_and_says_what_it_found(
    tagged: Callable[..., Tagged], capsys: pytest.CaptureFixture[str]
) -> None:
    made = tagged(training={"rounds": 1})
    result = made.fed.run()
    assert result.private
    assert (result.task, result.final.accuracy) == ("token-cls", None)
    assert result.final.entities is not None
    assert result.final.entity_f1 == result.final.entities.f1
    truth = [json.loads(line) for line in Path(made.job.evaluation.data).read_text().splitlines()]
    assert [(c.label, c.support) for c in result.final.classes] == [
        ("Drug", sum(row["tags"].count("B-Drug") for row in truth))
    ]
    assert result.final.entities.words == sum(len(row["tags"]) for row in truth)
    card = (made.fed.folder / "out" / "adapter" / "README.md").read_text()
    assert 'pipeline_tag: "token-classification"' in card
    assert "AutoModelForTokenClassification.from_pretrained(" in card
    assert "Entity F1 " in card
    assert "ccuracy" not in card.split("## Quality")[1].split("## Loading")[0]
    report = (made.fed.folder / "out" / "report.html").read_text()
    assert "entity F1" in report
    assert ">accuracy<" not in report


@pytest.mark.slow
def test_training_learns_and_a_site_reads_entities_from_a_text(
    tagged: Callable[..., Tagged],
    no_privacy: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = tagged(
        privacy=no_privacy | {"sampling_rate": 0.5},
        training={"rounds": 3, "local_steps": 20, "learning_rate": 0.02, "optimizer": "adamw"},
    )
    result = made.fed.run()
    assert result.start is not None
    assert (result.final.entity_f1 or 0) > (result.start.entity_f1 or 0) + 0.3
    out = made.fed.folder / "out" / "adapter"

    # transformers and peft alone, a word at a time by hand, against the site's own command.
    base = AutoModelForTokenClassification.from_pretrained(made.job.model.base, num_labels=3)
    model = PeftModel.from_pretrained(base, str(out)).eval()
    text = "w3 w105 w203 w7 w101 w2"
    tokens = AutoTokenizer.from_pretrained(out)(text, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**tokens).logits[0, 1:-1]
    tags = [TAGS[i] for i in logits.argmax(-1).tolist()]
    found = predict(made, text, monkeypatch)
    words = text.split()
    before = ["O", *tags]
    begins = [
        i for i, tag in enumerate(tags) if tag == "B-Drug" or (tag != "O" and before[i] == "O")
    ]
    assert [guess.text.split()[0] for guess in found] == [words[i] for i in begins]
    assert sum(len(guess.text.split()) for guess in found) == sum(tag != "O" for tag in tags)
    assert {guess.label for guess in found} == {"Drug"}
    command = ["--site", "A", "--home", str(made.homes["A"].folder), "predict", "drugs", text]
    capsys.readouterr()
    assert fl_client(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["entity", "kind", "probability"]
    shown = [f"{guess.text} Drug {guess.probability:.3f}" for guess in found]
    assert [" ".join(line.split()) for line in lines[1:]] == shown
    assert fl_client([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["text"] == found[0].text

    sure = logits.softmax(-1).max(-1).values
    first = range(begins[0], begins[0] + len(found[0].text.split()))
    assert found[0].probability == pytest.approx(float(sure[list(first)].min()), abs=1e-5)


def predict(made: Tagged, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """A site's prediction from the adapter that the job ended with, kept as ``fetch`` keeps it."""
    home = made.homes["A"]
    _, data = made.fed.checkpoints.latest(made.job.sha256)
    vector = np.frombuffer(data, "<f4")
    adapter = export._load(home, made.job)
    kept = export.Kept(made.job.sha256, tuple(TAGS), vector_sha256(vector), "server at fetch")
    export._keep(home, made.job, adapter, vector, kept)
    return export.predict(home, "drugs", text)


def test_a_loss_that_is_a_mean_over_the_batchs_words_is_refused(
    tagged: Callable[..., Tagged],
) -> None:
    made = tagged()
    adapter = load_adapter(made.job, Path(made.job.model.base), "cpu")
    trainer = make_trainer(made.job, adapter, made.homes["A"])
    CHECKS["neighbours"](Rehearsal(trainer, "A"))

    def mixed(model: Any, batch: Any) -> torch.Tensor:  # noqa: ANN401
        own = (batch.labels != -100).sum(dim=1)
        losses: torch.Tensor = per_example_loss(model, batch) * own / own.sum()
        return losses

    with pytest.raises(SelfCheckFailed, match="neighbours"):
        CHECKS["neighbours"](Rehearsal(replace(trainer, losses=mixed), "A"))


def test_a_data_set_of_texts_is_no_data_set_of_words(
    tagged: Callable[..., Tagged], make_job: MakeJob, site: Callable[..., Site]
) -> None:
    made = tagged()
    report = inspect(made.homes["A"], "notes", made.job)
    assert set(report.labels) == set(TAGS)
    assert (report.records, report.unknown_labels, report.empty) == (50, 0, 0)
    with pytest.raises(InvalidInput, match="must map text and label for task 'seq-cls'"):
        inspect(made.homes["A"], "notes", make_job())
    with pytest.raises(InvalidInput, match="must map words and tags for task 'token-cls'"):
        inspect(site("C").home, "notes", made.job)
