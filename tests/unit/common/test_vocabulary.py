"""A base that has no place for what a job brings is refused before any record is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from common.adapter import load_adapter
from common.errors import InvalidInput
from common.job import Job
from common.model import folder_hash
from common.tasks.batches import Example
from common.vocabulary import require_known

MakeJob = Callable[..., Job]


class Base(Protocol):
    """A folder with the tiny base."""

    @property
    def folder(self) -> Path: ...


ROWS, POSITIONS = 357, 64  # of the tiny base


def edited(base: Path, to: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a base whose tokenizer says something else."""
    shutil.copytree(base, to)
    tokenizer = json.loads((to / "tokenizer.json").read_text())
    edit(tokenizer)
    (to / "tokenizer.json").write_text(json.dumps(tokenizer))
    return to


def job_on(job: MakeJob, base: Path, **model: int) -> Job:
    return job(model={"base": str(base), "sha256": folder_hash(base), **model})


def test_a_word_beyond_the_embedding_is_refused_from_the_tokenizer_alone(
    job: MakeJob,
    tiny_base: Base,
    tmp_path: Path,
) -> None:
    def edit(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["vocab"]["secret"] = ROWS

    base = edited(tiny_base.folder, tmp_path / "crafted", edit)
    with pytest.raises(InvalidInput, match=r"each of its tokenizer's ids, got 357 for 0 to 357"):
        load_adapter(job_on(job, base), base, "cpu")


def test_what_the_tokenizer_puts_around_a_text_is_looked_at_too(
    job: MakeJob,
    tiny_base: Base,
    tmp_path: Path,
) -> None:
    def edit(tokenizer: dict[str, Any]) -> None:
        tokenizer["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [4711]

    base = edited(tiny_base.folder, tmp_path / "crafted", edit)
    with pytest.raises(InvalidInput, match=r"got 357 for 0 to 4711"):
        load_adapter(job_on(job, base), base, "cpu")


def test_a_length_beyond_the_positions_is_refused(job: MakeJob, tiny_base: Base) -> None:
    made = job_on(job, tiny_base.folder, max_length=POSITIONS)
    assert load_adapter(made, tiny_base.folder, "cpu").table.size > 0
    made = job_on(job, tiny_base.folder, max_length=POSITIONS + 1)
    with pytest.raises(InvalidInput, match=r"model.max_length must be a length .* got 65"):
        load_adapter(made, tiny_base.folder, "cpu")


def test_a_base_that_takes_fewer_tokens_than_it_has_positions_is_asked_and_not_read(
    job: MakeJob,
    tiny_base: Base,
    tmp_path: Path,
) -> None:
    """RoBERTa counts positions from its padding id on, so it takes fewer tokens than it has."""
    from transformers import RobertaConfig, RobertaModel

    base = tmp_path / "roberta"
    shutil.copytree(tiny_base.folder, base)
    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=ROWS, max_position_embeddings=50, pad_token_id=0, **sizes)
    RobertaModel(config).save_pretrained(base)
    for length, is_taken in ((49, True), (50, False)):
        made = job(model={"base": str(base), "sha256": folder_hash(base), "max_length": length})
        if is_taken:
            load_adapter(made, base, "cpu")
            continue
        with pytest.raises(InvalidInput, match=r"model\.max_length must be"):
            load_adapter(made, base, "cpu")


@pytest.mark.parametrize(
    ("ids", "padded", "says"),
    [
        ((5, ROWS), 16, "one of the 357 embeddings"),
        ((5, -1), 16, "one of the 357 embeddings"),
        (tuple(range(17)), 16, "at most 48"),
        ((5,), 64, "at most 48"),
    ],
)
def test_a_record_without_a_place_is_found_before_any_round(
    ids: tuple[int, ...],
    padded: int,
    says: str,
    job: MakeJob,
    tiny_base: Base,
) -> None:
    model = load_adapter(job(), tiny_base.folder, "cpu").model
    fine = Example((0, ROWS - 1), 0, 16)
    require_known([fine, Example(tuple(range(48)), 1, 48)], model, 48)
    with pytest.raises(InvalidInput, match=says):
        require_known([fine, Example(ids, 0, padded)], model, 48)
