"""The models and batches that steps are timed on: MiniLM, and a random Llama of 1B numbers."""

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, LlamaConfig

from common.model import locate
from common.privacy.persample import trainable
from simulations.benchmarks.step_engines import TokenBatch

TARGETS = {
    "qv": ["query", "value"],
    "all": ["query", "key", "value", "dense"],
}
RECORDS, TOKENS = 32, 128
_RANK, _LABELS = 8, 3
_SHORTEST = 16


def minilm(targets: str) -> nn.Module:
    """MiniLM as a sequence classifier under plain PEFT, with LoRA away from its start."""
    folder = locate("builtin:minilm")
    base = AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=_LABELS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        local_files_only=True,
    )
    return _with_lora(base, TARGETS[targets], "classifier")


def llama_1b() -> nn.Module:
    """A random Llama in the shape of Llama 3.2 1B, with a small vocabulary."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_labels=_LABELS,  # type: ignore[call-arg]
        pad_token_id=0,
    )
    base = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    return _with_lora(base, ["q_proj", "k_proj", "v_proj", "o_proj"], "score")


def _with_lora(base: nn.Module, targets: list[str], head: str) -> nn.Module:
    config = LoraConfig(
        r=_RANK, target_modules=targets, modules_to_save=[head], task_type="SEQ_CLS"
    )
    model: nn.Module = get_peft_model(base, config)
    with torch.no_grad():  # LoRA starts at B = 0, where A has no gradient
        draw = np.random.Generator(np.random.PCG64(11))
        for parameter in trainable(model).values():
            parameter.copy_(torch.from_numpy(0.05 * draw.standard_normal(parameter.shape)))
    return model.train()


def make_batch(model: nn.Module, seed: int, records: int = RECORDS) -> TokenBatch:
    """Random tokens of ragged lengths, the first one filling all places."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(_SHORTEST, TOKENS + 1, (records,), generator=draw)
    lengths[0] = TOKENS
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    ids = torch.randint(1000, 30_000, (records, TOKENS), generator=draw) * mask
    labels = torch.randint(_LABELS, (records,), generator=draw)
    device = next(model.parameters()).device
    return TokenBatch(ids.to(device), mask.to(device), labels.to(device))
