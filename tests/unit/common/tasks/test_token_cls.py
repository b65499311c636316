"""Tags at words. Oracles: alignment and figures by hand, log-softmax, a second reading of tags."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

from common.adapter import LoadedAdapter, load_adapter
from common.data.records import Record
from common.data.tagging import tag_set
from common.errors import InvalidInput
from common.job import Job
from common.privacy.persample import flat_gradients
from common.tasks import TASKS, task_of
from common.tasks.batches import IGNORED, Example, fixed_batches, physical_batches
from common.tasks.entities import entities, score
from common.tasks.token_cls import answer, encode, measure, per_example_loss, question, word_tags

MakeJob = Callable[..., Job]
CPU = torch.device("cpu")
TAGS = tag_set(["Drug", "Sign"])  # O, B-Drug, I-Drug, B-Sign, I-Sign


@pytest.fixture
def job(make_job: MakeJob) -> Job:
    return make_job(
        job={"name": "tags", "task": "token-cls"},
        data={"labels": list(TAGS)},
        evaluation={"data": "builtin:wards"},
    )


def load(job: Job) -> LoadedAdapter:
    return load_adapter(job, Path(job.model.base), "cpu")


def record(words: str, tags: str) -> Record:
    return Record(words, "", words=tuple(words.split(" ")), tags=tuple(tags.split()))


def some(count: int) -> list[Record]:
    """Records of different lengths, with words of several tokens among them."""
    return [
        record(
            " ".join(f"w{(7 * i + j) % 300}" if j % 3 else "xyz" for j in range(2 + (5 * i) % 17)),
            " ".join(TAGS[(i + j) % len(TAGS)] for j in range(2 + (5 * i) % 17)),
        )
        for i in range(count)
    ]


def test_a_words_first_token_carries_its_tag_and_no_other_token_does(job: Job) -> None:
    # The tiny tokenizer has w0 to w299 as one token each and spells what else there is.
    (made,) = encode(load(job).tokenizer, [record("w0 abc w1", "O B-Drug I-Drug")], job)
    assert made.input_ids == (2, 57, 5, 32, 33, 58, 3)  # [CLS] w0 a ##b ##c w1 [SEP]
    assert made.label == (IGNORED, 0, 1, IGNORED, IGNORED, 2, IGNORED)
    assert made.words == (0, 1, 2)
    assert made.padded_length == 16


def test_a_word_without_any_token_moves_no_other_words_tag(job: Job) -> None:
    (made,) = encode(load(job).tokenizer, [record("w0  w1", "B-Sign O B-Drug")], job)
    assert made.label == (IGNORED, 3, 1, IGNORED)
    assert made.words == (0, 2)
    assert word_tags(made, [0, 3, 1, 0], TAGS, 3) == ["B-Sign", "O", "B-Drug"]


def test_a_tokenizer_of_bytes_sees_the_space_before_a_word(job: Job) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)  # type: ignore[no-untyped-call]
    (found,) = encode(tokenizer, [record("ab c", "B-Drug O")], job)
    assert tokenizer.decode(list(found.input_ids)) == "Ġ a b Ġ c"
    assert found.label == (1, IGNORED, IGNORED, 0, IGNORED)


def test_words_beyond_the_longest_text_count_as_none_and_are_counted(job: Job) -> None:
    long = record(" ".join(["w5"] * 60), " ".join(["B-Drug"] * 60))
    (made,) = examples = encode(load(job).tokenizer, [long], job)
    assert len(made.input_ids) == job.model.max_length == 48
    assert len(made.words) == 46
    found = measure([long], examples, [np.array([0, *[1] * 46, 0])], job)
    assert found.entities is not None
    assert (found.entities.words, found.entities.words_cut) == (60, 14)
    assert found.entities.precision == 1.0
    assert found.entities.recall == pytest.approx(46 / 60)


def test_a_tag_outside_the_public_set_is_refused_without_naming_it(job: Job) -> None:
    tokenizer = load(job).tokenizer
    with pytest.raises(InvalidInput, match="set of 5, got 1 records") as caught:
        encode(tokenizer, [record("w1 w2", "O O"), record("w1 secret", "O B-Private")], job)
    assert "Private" not in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidInput, match="must have words and tags"):
        encode(tokenizer, [Record("w1", "O")], job)


def test_a_base_whose_tokenizer_cannot_say_which_word_a_token_is_of_is_refused(job: Job) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InvalidInput, match=r"must have a tokenizer\.json for task 'token-cls'"):
        encode(Slow(), some(1), job)


def test_the_loss_is_the_mean_over_the_records_own_words(job: Job) -> None:
    adapter = load(job)
    examples = encode(adapter.tokenizer, some(4), job)
    model = adapter.model.eval()
    for example in examples:
        (batch,) = physical_batches([example], 1, 0, CPU)
        with torch.inference_mode():
            (found,) = per_example_loss(model, batch)
            logits = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).logits.double()[0]
        assert isinstance(example.label, tuple)
        own = [
            -float(torch.log_softmax(logits[token], 0)[label])
            for token, label in enumerate(example.label)
            if label != IGNORED
        ]
        assert float(found) == pytest.approx(sum(own) / len(own), rel=1e-5)


@pytest.mark.parametrize("place", [0, 1, 5])
def test_a_records_loss_and_gradient_are_the_same_bits_whoever_else_is_there(
    job: Job, place: int
) -> None:
    adapter = load(job)
    everyone = encode(adapter.tokenizer, some(9), job)
    model = adapter.model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    first = gradients(adapter, everyone)
    rest = everyone[:place] + everyone[place + 1 :]
    for example, (loss, row) in gradients(adapter, rest).items():
        assert loss == first[example][0]
        assert torch.equal(row, first[example][1])


def gradients(
    adapter: LoadedAdapter, examples: list[Example]
) -> dict[Example, tuple[float, torch.Tensor]]:
    """Loss and gradient of each example, in physical batches as training forms them."""
    found = {}
    for batch, places in fixed_batches(examples, 4, 0, CPU):
        losses = per_example_loss(adapter.model, batch).tolist()
        rows = flat_gradients(
            adapter.model,
            lambda batch=batch: per_example_loss(adapter.model, batch),  # type: ignore[misc]
        )
        for i, place in enumerate(places):
            found[examples[place]] = (losses[i], rows[i].clone())
    return found


def test_rows_that_no_record_fills_have_no_loss(job: Job) -> None:
    adapter = load(job)
    ((batch, places),) = fixed_batches(encode(adapter.tokenizer, some(1), job), 3, 0, CPU)
    with torch.inference_mode():
        losses = per_example_loss(adapter.model, batch)
    assert places == [0]
    assert losses[0] > 0
    assert losses[1:].tolist() == [0.0, 0.0]


TRUTH = ["O B-Drug I-Drug O B-Sign", "B-Sign B-Sign O"]
FOUND = ["O B-Drug O O B-Sign", "I-Sign B-Drug O"]


def test_entities_are_scored_as_counted_by_hand() -> None:
    found = score([t.split() for t in TRUTH], [t.split() for t in FOUND], TAGS, words_cut=2)
    # True: Drug 1-2, Sign 4; Sign 0, Sign 1. Found: Drug 1, Sign 4; Sign 0, Drug 1. Two are right;
    # strictly one, since I-Sign begins nothing there.
    assert found.entities is not None
    assert (found.entities.precision, found.entities.recall, found.entities.f1) == (0.5, 0.5, 0.5)
    assert found.entities.strict_f1 == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))
    assert [(c.label, c.support, c.f1) for c in found.classes] == [
        ("Drug", 1, 0.0),
        ("Sign", 3, pytest.approx(0.8)),
    ]
    assert found.macro_f1 == pytest.approx(0.4)
    assert (found.accuracy, found.entity_f1) == (None, 0.5)
    assert (found.entities.words, found.entities.words_cut) == (8, 2)


def test_where_nothing_is_found_or_to_be_found_the_score_is_zero() -> None:
    for truth, found in ((["O", "O"], ["O", "O"]), (["O", "B-Drug"], ["O", "O"])):
        made = score([truth], [found], TAGS)
        assert made.entities is not None
        assert (made.entities.f1, made.entities.strict_f1, made.macro_f1) == (0.0, 0.0, 0.0)
        assert [c.label for c in made.classes] == ["Drug", "Sign"]


tags = st.lists(st.lists(st.sampled_from(TAGS), min_size=3, max_size=9), min_size=1, max_size=5)


def begun(words: list[str]) -> Iterator[tuple[int, int, str]]:
    """Entities as IOB2 means them: B-, then I- of the same kind; other I- are none. Ours alone."""
    start = None
    for i, tag in enumerate([*words, "O"]):
        if start is not None and tag != f"I-{words[start][2:]}":
            yield start, i, words[start][2:]
            start = None
        if tag.startswith("B-"):
            start = i


@given(tags)
def test_strict_f1_is_that_of_a_second_reading_of_the_tags(found: list[list[str]]) -> None:
    truth = [[*row[1:], "B-Drug"] for row in found]
    right = {(n, *e) for n, row in enumerate(truth) for e in begun(row)}
    guessed = {(n, *e) for n, row in enumerate(found) for e in begun(row)}
    expected = 2 * len(right & guessed) / (len(right) + len(guessed))
    made = score(truth, found, TAGS).entities
    assert made is not None
    assert made.strict_f1 == pytest.approx(expected)
    assert made.f1 == pytest.approx(f1_score(truth, found, zero_division=0))
    assert made.strict_f1 == pytest.approx(
        f1_score(truth, found, mode="strict", scheme=IOB2, zero_division=0)
    )


def test_a_text_is_answered_with_its_entities_and_their_least_certain_tag(job: Job) -> None:
    asked = question("w1, w2 w3.", job)
    assert asked.words == ("w1", ",", "w2", "w3", ".")
    (made,) = encode(load(job).tokenizer, [asked], job)
    probabilities = torch.full((len(made.input_ids), len(TAGS)), 0.025)
    # [CLS] w1 , w2 w3 . [SEP]; the comma and the full stop are unknown to the tiny tokenizer.
    for token, tag, sure in ((1, 0, 0.9), (2, 0, 0.9), (3, 1, 0.8), (4, 2, 0.6), (5, 0, 0.9)):
        probabilities[token, tag] = sure
    (entity,) = answer(asked, made, probabilities, job)
    assert (entity.label, entity.text) == ("Drug", "w2 w3")
    assert entity.probability == pytest.approx(0.6)
    assert entities(["O", "O", "B-Drug", "I-Drug", "O"]) == [("Drug", 2, 3)]


@pytest.mark.parametrize(
    "labels", [["O", "B-x", "I-y"], ["B-x", "I-x"], ["O", "I-x"], ["O", "x"], ["O", "B-", "I-"]]
)
def test_a_job_whose_labels_are_no_iob2_tags_is_refused(
    labels: list[str], make_job: MakeJob
) -> None:
    with pytest.raises(InvalidInput, match=r"data\.labels must be IOB2 tags"):
        make_job(job={"task": "token-cls"}, data={"labels": labels})


def test_the_columns_of_words_belong_to_jobs_of_words(make_job: MakeJob, job: Job) -> None:
    with pytest.raises(InvalidInput, match=r"evaluation\.words must be absent with task 'seq-cls'"):
        make_job(evaluation={"words": "tokens"})
    assert job.hold_out_columns.named() == {"words": "words", "tags": "tags"}
    assert task_of(job) is TASKS["token-cls"]


def test_an_old_jobs_bytes_know_nothing_of_words_and_patience(make_job: MakeJob) -> None:
    text = make_job().canonical.decode()
    for key in ("words", "tags", "patience"):
        assert f'"{key}"' not in text
    parsed: Any = make_job(training={"patience": 2}).canonical.decode()
    assert '"patience":2' in parsed
