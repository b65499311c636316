"""Bases of other families than BERT train, save and load: random, tiny, through the real apps."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Families = dict[str, tuple[str, dict[str, Any], tuple[str, ...], tuple[str, ...]]]

pytestmark = pytest.mark.slow

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# family -> transformers' base class, its sizes, adapter targets, heads the base has no weights for
FAMILIES: Families = {
    "roberta": (
        "Roberta",
        {**SMALL, "intermediate_size": 48, "max_position_embeddings": 70, "pad_token_id": 0},
        ("query", "value"),
        ("classifier",),
    ),
    "distilbert": (
        "DistilBert",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
        ("q_lin", "v_lin"),
        ("pre_classifier", "classifier"),
    ),
    "llama": (
        "Llama",
        {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2},
        ("q_proj", "v_proj", "down_proj"),
        ("score",),
    ),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, ("c_attn",), ("score",)),
}


def write_base(folder: Path, family: str, tokenizer_from: Path) -> str:
    """Write a random base with the tiny tokenizer; its content hash."""
    import torch
    import transformers

    from common.model import folder_hash

    name, sizes, _, _ = FAMILIES[family]
    for path in tokenizer_from.glob("*token*"):
        shutil.copy(path, folder)
    config = getattr(transformers, f"{name}Config")(vocab_size=357, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    return folder_hash(folder)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_of_another_family_trains_privately_and_its_adapter_loads(
    family: str,
    dtype: str,
    tiny_base: Any,  # noqa: ANN401
    tmp_path: Path,
    job: Callable[..., Any],
    federation: Callable[..., Any],
) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path / family
    folder.mkdir()
    sha256 = write_base(folder, family, tiny_base.folder)
    _, _, targets, head = FAMILIES[family]
    manifest = job(
        model={"base": str(folder), "sha256": sha256, "dtype": dtype, "max_length": 32},
        adapter={"targets": targets, "head": head},
        training={"rounds": 1, "local_steps": 2, "learning_rate": 0.1},
    )
    result = federation(manifest).run()
    assert result.private
    saved = tmp_path / "server" / "out" / "adapter"
    weights = load_file(saved / "adapter_model.safetensors")
    moved = [name for name, value in weights.items() if "lora_B" in name and bool(value.any())]
    assert len(moved) == 2 * len(targets)
    base = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, dtype=getattr(torch, dtype), pad_token_id=0
    )
    loaded = PeftModel.from_pretrained(base, saved).state_dict()
    for name, value in weights.items():
        parts = name.split(".")
        kept = next(
            tensor
            for key, tensor in loaded.items()
            if key.replace(".modules_to_save.default", "").replace(".default", "") == name
        )
        assert torch.equal(kept.float(), value.float().to(kept.dtype).float()), parts[-1]
