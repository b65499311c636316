import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from common.adapter import build_adapter, read_vector
from common.errors import InvalidInput, JobRefused
from common.job import Job
from common.model import (
    content_hash,
    folder_hash,
    load_config,
    load_tokenizer,
    locate,
    require_base,
)
from common.privacy.persample import trainable

MakeJob = Callable[..., Job]


@pytest.fixture
def base(tiny_base: Any, tmp_path: Path) -> Path:  # noqa: ANN401 -- the root conftest's own
    return Path(shutil.copytree(tiny_base.folder, tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_hash_is_over_names_and_contents_of_what_is_loaded(base: Path) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    table = {n: hashlib.sha256((base / n).read_bytes()).hexdigest() for n in names}
    assert folder_hash(base) == hashlib.sha256(rfc8785.dumps(table)).hexdigest()
    (base / "README.md").write_text("not loaded")
    assert folder_hash(base) == hashlib.sha256(rfc8785.dumps(table)).hexdigest()


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_one_byte_of_any_loaded_file_changes_the_hash(base: Path, name: str) -> None:
    before = folder_hash(base)
    content = bytearray((base / name).read_bytes())
    content[-2] ^= 1
    (base / name).write_bytes(content)
    if name.endswith("config.json"):
        (base / name).write_text("{}")  # still JSON
    assert folder_hash(base) != before


def test_a_moved_base_keeps_its_hash_and_an_added_file_changes_it(
    base: Path, tmp_path: Path
) -> None:
    before = folder_hash(base)
    moved = base.rename(tmp_path / "elsewhere")
    assert content_hash(str(moved)) == before
    (moved / "added_tokens.json").write_text("{}")
    assert content_hash(str(moved)) != before


def test_another_model_under_the_same_name_is_refused(job: MakeJob, base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    changed = {**weights, "pooler.dense.bias": weights["pooler.dense.bias"] + 1}
    save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobRefused, match=r"model\.sha256 must be that of the base here"):
        require_base(job(model={"base": str(base)}))


def test_a_sites_own_place_for_a_base_goes_first(job: MakeJob, base: Path) -> None:
    there = job(model={"base": "/nowhere/base"})
    assert require_base(there, {"/nowhere/base": base}) == base
    with pytest.raises(InvalidInput, match=r"must be a folder with a config\.json"):
        require_base(there)


@pytest.mark.parametrize(
    ("name", "revision", "says"),
    [
        ("builtin:gpt", "", "must be one of builtin:minilm"),
        ("./nowhere", "", "must be a folder with a config.json"),
        ("owner/name", "", "40-hex model.revision"),
        ("a/b/c", "0" * 40, "40-hex model.revision"),
        ("name", "0" * 40, "40-hex model.revision"),
    ],
)
def test_a_base_that_is_not_pinned_or_not_here_is_refused(
    name: str, revision: str, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        locate(name, revision)


def test_a_model_that_brings_code_is_refused(base: Path) -> None:
    edit(base / "config.json", auto_map={"AutoModel": "evil.py--Evil"})
    with pytest.raises(InvalidInput, match="must not bring code"):
        folder_hash(base)


def test_pickled_weights_are_refused(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="must hold safetensors weights"):
        folder_hash(base)


def test_an_adapter_that_the_loader_would_put_into_the_base_is_refused(base: Path) -> None:
    (base / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(InvalidInput, match=r"adapter_config\.json"):
        folder_hash(base)


def test_weights_that_the_base_lacks_are_not_made_up(job: MakeJob, base: Path) -> None:
    # Drawn anew in every process, they would be another model at every site.
    with_head = save_with_head(base, labels=3)
    save_file(
        {k: v for k, v in with_head.items() if "pooler" not in k},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(InvalidInput, match=r"no weights for, got none for bert\.pooler"):
        build_adapter(job(model={"base": str(base)}), base)


def test_a_head_of_other_labels_counts_as_none(job: MakeJob, base: Path) -> None:
    before = read_vector(build_adapter(job(model={"base": str(base)}), base))
    save_with_head(base, labels=2)
    after = read_vector(build_adapter(job(model={"base": str(base)}), base))
    assert after.tobytes() == before.tobytes()


def test_a_head_of_the_jobs_labels_is_kept(job: MakeJob, base: Path) -> None:
    weight = save_with_head(base, labels=3)["classifier.weight"]
    model = build_adapter(job(model={"base": str(base)}), base)
    (head,) = [p for name, p in trainable(model).items() if name.endswith("default.weight")
               and "classifier" in name]  # fmt: skip
    assert torch.equal(head.detach(), weight)


def save_with_head(base: Path, labels: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(8)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    model.save_pretrained(base)
    return dict(load_file(base / "model.safetensors"))


def test_every_dropout_is_off(base: Path) -> None:
    edit(base / "config.json", hidden_dropout_prob=0.4, classifier_dropout=0.3, attn_pdrop=0.2)
    config = load_config(base)
    assert config.hidden_dropout_prob == 0
    assert config.attention_probs_dropout_prob == 0
    assert config.classifier_dropout == 0
    assert config.attn_pdrop == 0


def test_the_tokenizer_is_the_bases(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    assert tokenizer("w0 w299")["input_ids"] == [2, 57, 356, 3]
    assert tokenizer.pad_token_id == 0


def test_an_index_that_names_weights_outside_its_folder_is_refused(
    tiny_base: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(tiny_base.folder, tmp_path / "base")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert len(folder_hash(folder)) == 64
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(InvalidInput, match="must name weights in its own folder"):
        folder_hash(folder)
