"""The engine on the families of models that docs/design.md names, each tiny and random.

The oracle is one backward pass an example, in float64.
"""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from common.errors import SelfCheckFailed
from common.privacy.persample import flat_gradients, trainable

VOCABULARY, WIDTH = 61, 24
ENCODER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DECODER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "electra": {**ENCODER, "embedding_size": 16},
    "albert": {**ENCODER, "embedding_size": 16, "classifier_dropout_prob": 0.0},
    "mpnet": ENCODER,
    "distilbert": {
        "dim": WIDTH,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
    "modernbert": {
        **DECODER,
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        "reference_compile": False,
    },
}
GENERATORS: dict[str, dict[str, Any]] = {
    "qwen2": DECODER,
    "qwen3": {**DECODER, "head_dim": 12},
    "gemma2": {**DECODER, "head_dim": 12},
    "phi3": DECODER,
    "gpt_neox": {**ENCODER, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "bloom": {"hidden_size": WIDTH, "n_layer": 2, "n_head": 2},
    "gptj": {
        "n_embd": WIDTH,
        "n_layer": 2,
        "n_head": 2,
        "rotary_dim": 4,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "opt": (
        {
            "hidden_size": WIDTH,
            "word_embed_proj_dim": WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "max_position_embeddings": 32,
            "dropout": 0.0,
        },
        r"fc\d.*got other rows",
    ),
    "mixtral": ({**DECODER, "num_local_experts": 2}, "lora_"),
}


def adapted(family: str, kind: Any, options: dict[str, Any]) -> nn.Module:  # noqa: ANN401
    torch.manual_seed(11)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, **{"vocab_size": VOCABULARY, **special, **options})
    if kind is AutoModelForSequenceClassification:
        config.num_labels = 3
    config._attn_implementation = "eager"
    base = kind.from_config(config)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights=False)
    model: nn.Module = get_peft_model(base, lora).double().train()
    return model


def losses_of(model: nn.Module) -> Any:  # noqa: ANN401
    ids = torch.tensor([[5, 9, 13, 4, 8], [7, 3, 22, 0, 0], [41, 60, 17, 33, 0]])
    mask = (ids > 0).long()

    def losses(rows: slice = slice(None)) -> Tensor:
        logits = model(input_ids=ids[rows], attention_mask=mask[rows]).logits
        if logits.dim() == 2:
            return functional.cross_entropy(logits, torch.tensor([0, 2, 1])[rows], reduction="none")
        targets = ids[rows].roll(-1, dims=1)
        each = functional.cross_entropy(logits.mT, targets, reduction="none")
        return (each * mask[rows]).sum(dim=1)

    return losses


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", [*CLASSIFIERS, *GENERATORS])
def test_rows_are_the_gradients_of_each_example_alone(family: str, fused: bool) -> None:
    is_classifier = family in CLASSIFIERS
    kind = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    model = adapted(family, kind, (CLASSIFIERS if is_classifier else GENERATORS)[family])
    losses, parameters = losses_of(model), list(trainable(model).values())
    expected = torch.stack(
        [
            torch.cat([part.flatten() for part in torch.autograd.grad(loss.sum(), parameters)])
            for loss in (losses(slice(i, i + 1)) for i in range(3))
        ]
    )
    found = flat_gradients(model, losses, fused=fused)
    largest = float(expected.abs().max())
    assert largest > 1e-2
    assert float((found - expected).abs().max()) < 1e-12 * max(1.0, largest)


@pytest.mark.parametrize("family", REFUSED)
def test_layers_that_see_tokens_without_their_records_are_refused(family: str) -> None:
    options, words = REFUSED[family]
    model = adapted(family, AutoModelForCausalLM, options).float()
    with pytest.raises(SelfCheckFailed, match=words):
        flat_gradients(model, losses_of(model))
