import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes with huggingface-hub, untyped

from common.errors import InvalidInput
from common.job import Job
from common.result import Result
from server.model_card import model_card

MakeOutcome = Callable[..., tuple[Result, Job]]


def front_matter(card: str) -> dict[str, Any]:
    """By PyYAML, which the hub's own reader uses."""
    _, text, _ = card.split("---\n", 2)
    fields: dict[str, Any] = yaml.safe_load(text)
    return fields


def with_base(job: Job, base: str) -> Job:
    return job.model_copy(update={"model": job.model.model_copy(update={"base": base})})


def rehashed(result: Result, job: Job) -> Result:
    return result.model_copy(update={"job_sha256": job.sha256})


def test_the_front_matter_is_yaml_with_what_peft_writes(outcome: MakeOutcome) -> None:
    result, job = outcome()
    job = with_base(Job.model_validate(job.model_dump()), "org/model")
    fields = front_matter(model_card(rehashed(result, job), job))
    assert (fields["base_model"], fields["library_name"]) == ("org/model", "peft")
    assert fields["license"] == "unknown"
    assert "differential-privacy" in fields["tags"]


def test_an_operators_folder_stays_private(outcome: MakeOutcome) -> None:
    card = model_card(*outcome())
    assert "base_model" not in front_matter(card)
    assert "/home/operator" not in card
    assert "minilm" in card


def test_it_states_what_each_site_spent_and_how_to_load(outcome: MakeOutcome) -> None:
    result, job = outcome(steps={"northgate": 48})
    card = model_card(result, job)
    for site in result.sites:
        assert site.epsilon is not None
        spent = re.search(
            rf"\| {site.name.replace('-', '.-')} \|.*\| {site.steps} \| ([\d.]+) \|", card
        )
        assert spent is not None
        assert site.epsilon - 1e-5 <= float(spent[1]) < site.epsilon + 0.01
    assert "PeftModel.from_pretrained" in card
    assert "The unit is a record, not a person" in card
    assert "Each site enforces its own cap over the life of its records" in card


@pytest.mark.parametrize("how", [{"mode": "none"}, {"seeded": True}])
def test_without_privacy_it_says_so_and_is_not_tagged(
    how: dict[str, Any], outcome: MakeOutcome
) -> None:
    card = model_card(*outcome(**how))
    assert "This run gives no privacy guarantee" in card
    assert "differential-privacy" not in front_matter(card)["tags"]


def test_a_label_from_outside_cannot_act_in_the_card(outcome: MakeOutcome) -> None:
    labels = ["a | b\n\n# heading", "<script>x</script>", "![i](http://x.example/p.png)", "`q`"]
    card = model_card(*outcome(classes=labels))
    assert "<script" not in card
    assert "\n# heading" not in card
    assert not re.search(r"(?<!\\)!\[", card)
    rows = [line for line in card.splitlines() if "heading" in line]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 6


def test_a_result_of_another_job_is_refused(outcome: MakeOutcome) -> None:
    result, _ = outcome()
    with pytest.raises(InvalidInput, match="job_sha256 must be"):
        model_card(result, outcome(rounds=3)[1])


def test_of_entities_it_names_their_kinds_and_the_order_of_the_tags(
    outcome_of_words: MakeOutcome,
) -> None:
    card = model_card(*outcome_of_words(["Drug", "Si_gn"], kept_round=5))
    fields = front_matter(card)
    assert fields["pipeline_tag"] == "token-classification"
    assert fields["metrics"] == ["f1", "precision", "recall"]
    assert r"to find entities: Drug, Si\_gn." in card
    assert "it is that of round 5, the best on the public hold-out" in card
    assert "Entity F1 0.797 (precision 0.812, recall 0.781; as seqeval counts by default" in card
    assert "AutoModelForTokenClassification.from_pretrained(" in card
    assert r"(`O`, `B\-Drug`" in card


def test_it_says_who_declared_the_hold_out_disjoint_or_that_nobody_did(
    outcome: MakeOutcome,
) -> None:
    result, job = outcome()
    assert "Nobody declared that the hold" in model_card(result, job)
    words = "notes of [2019] <b>made up</b>"
    told = job.model_copy(
        update={"evaluation": job.evaluation.model_copy(update={"disjoint_because": words})}
    )
    told = Job.model_validate(told.model_dump())
    card = model_card(rehashed(result, told), told)
    assert "declared by the operator and checked by nobody" in card
    assert r"notes of \[2019\] &lt;b&gt;made up" in card
