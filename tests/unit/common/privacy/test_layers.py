"""Every kind of model and layer against one plain backward pass an example, and against Opacus."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from common.errors import SelfCheckFailed
from common.privacy.persample import flat_gradients, trainable

VOCABULARY, LABELS = 61, 3
RECORDS, TOKENS = 4, 7


@dataclass(frozen=True)
class Case:
    """A tiny model with an adapter, ragged inputs for it, and its per-example loss."""

    model: nn.Module
    inputs: dict[str, Tensor]
    labels: Tensor

    def losses(self, rows: slice = slice(None)) -> Tensor:
        logits = self.model(**{k: v[rows] for k, v in self.inputs.items()}).logits
        if logits.dtype == torch.bfloat16:
            logits = logits.float()
        labels = self.labels[rows]
        if labels.dim() == 1:
            return functional.cross_entropy(logits, labels, reduction="none")
        each = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        mask = self.inputs["attention_mask"][rows]
        return (each * mask).sum(dim=1) / mask.sum(dim=1)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(trainable(self.model).values())

    def alone(self) -> Tensor:
        """The oracle: n plain backward passes, (n, P)."""
        rows = []
        for i in range(len(self.labels)):
            loss = self.losses(slice(i, i + 1)).sum()
            parts = torch.autograd.grad(loss, self.parameters)
            rows.append(torch.cat([part.flatten() for part in parts]))
        return torch.stack(rows)

    def found(
        self, rows: slice = slice(None), *, engine: str = "native", fused: bool = False
    ) -> Tensor:
        return flat_gradients(self.model, lambda: self.losses(rows), engine=engine, fused=fused)


def bert(*, tokens: bool = False) -> nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=TOKENS,
        num_labels=LABELS,  # type: ignore[call-arg]
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForTokenClassification(config) if tokens else BertForSequenceClassification(config)


def llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    )


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=TOKENS,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def case(
    base: nn.Module,
    targets: list[str] | str,
    saved: list[str] | None = None,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> Case:
    """``base`` with LoRA away from its start, and ragged right-padded inputs."""
    config = LoraConfig(r=3, lora_alpha=5, target_modules=targets, modules_to_save=saved, **options)  # type: ignore[arg-type]
    model: nn.Module = get_peft_model(base, config).to(dtype).train()
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in trainable(model).values():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            parameter.add_((0.2 * noise).to(parameter.dtype))
    mask = (torch.arange(TOKENS) < torch.tensor([7, 3, 5, 2])[:, None]).long()
    ids = torch.randint(1, VOCABULARY, (RECORDS, TOKENS), generator=draw) * mask
    if isinstance(base, BertForSequenceClassification):
        labels = torch.tensor([0, 2, 1, 2])
    elif isinstance(base, BertForTokenClassification):
        labels = torch.randint(LABELS, (RECORDS, TOKENS), generator=draw)
    else:
        labels = torch.roll(ids, -1, dims=1)
    return Case(model, {"input_ids": ids, "attention_mask": mask}, labels)


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert bool(expected.abs().amax(dim=1).min() > 1e-3)  # no record's gradient vanishes
    bound = tolerance * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) < bound


DENSE = ["query", "key", "value", "dense"]
MODELS: dict[str, Callable[[torch.dtype], Case]] = {
    "bert-seq-qv": lambda d: case(bert(), ["query", "value"], ["classifier"], d),
    "bert-seq-dense": lambda d: case(bert(), DENSE, ["classifier"], d),
    "bert-token-qv": lambda d: case(bert(tokens=True), ["query", "value"], ["classifier"], d),
    "bert-token-dense": lambda d: case(bert(tokens=True), DENSE, ["classifier"], d),
    "llama-qv": lambda d: case(llama(), ["q_proj", "v_proj"], None, d),
    "llama-all": lambda d: case(llama(), "all-linear", None, d),
    "gpt2": lambda d: case(gpt2(), ["c_attn"], None, d, fan_in_fan_out=True),
    "gpt2-conv1d": lambda d: case(gpt2(), ["c_attn"], ["c_fc"], d, fan_in_fan_out=True),
    "bert-layernorm": lambda d: case(bert(), ["query"], ["classifier", "LayerNorm"], d),
    "bert-embedding": lambda d: case(bert(), ["query"], ["classifier", "word_embeddings"], d),
    "llama-rmsnorm": lambda d: case(llama(), ["q_proj"], ["input_layernorm", "lm_head"], d),
    "llama-embedding": lambda d: case(llama(), ["q_proj"], ["embed_tokens"], d),
    "bert-lora-bias": lambda d: case(bert(), ["query"], ["classifier"], d, lora_bias=True),
    "bert-rslora": lambda d: case(bert(), ["query"], ["classifier"], d, use_rslora=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_single_example_gradients_in_float32_and_opacus_agrees(name: str) -> None:
    torch.manual_seed(2)
    made = MODELS[name](torch.float32)
    expected = made.alone()
    assert_close(made.found(), expected, 1e-6)
    assert_close(made.found(fused=True), expected, 1e-6)
    assert_close(made.found(engine="opacus"), expected, 1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_single_example_gradients_in_float64(name: str) -> None:
    torch.manual_seed(2)
    made = MODELS[name](torch.float64)
    expected = made.alone()
    assert expected.dtype == torch.float64
    assert_close(made.found(), expected, 1e-12)
    assert_close(made.found(fused=True), expected, 1e-12)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ["bert-seq-qv", "llama-all", "gpt2-conv1d"])
def test_micro_batches_give_the_same_rows(name: str, size: int) -> None:
    made = MODELS[name](torch.float64)
    parts = [made.found(slice(i, i + size)) for i in range(0, RECORDS, size)]
    assert_close(torch.cat(parts), made.alone(), 1e-12)


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("is_reentrant", [False, True])
@pytest.mark.parametrize("name", ["bert-seq-dense", "llama-all", "llama-rmsnorm"])
def test_gradient_checkpointing_changes_nothing(
    name: str, is_reentrant: bool, is_fused: bool
) -> None:
    made = MODELS[name](torch.float64)
    expected = made.alone()
    model: Any = made.model
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": is_reentrant}
    )
    assert_close(made.found(fused=is_fused), expected, 1e-12)


@pytest.mark.parametrize("is_fused", [False, True])
def test_under_bf16_autocast_rows_stay_float32_and_near_autograds(is_fused: bool) -> None:
    made = MODELS["bert-seq-dense"](torch.float32)

    def rows(compute: Callable[[], Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return compute()

    expected = rows(made.alone)
    found = rows(lambda: made.found(fused=is_fused))
    assert found.dtype == torch.float32
    # Eight bits of mantissa: autograd rounds a whole gradient to them, the buffer does not.
    assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_bf16_base_gives_float32_rows(is_fused: bool) -> None:
    made = MODELS["bert-seq-dense"](torch.bfloat16)
    found = made.found(fused=is_fused)
    expected = made.alone().float()
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.03


@pytest.mark.parametrize("engine", ["native", "opacus"])
def test_a_record_that_is_not_finite_leaves_the_others_bit_equal(engine: str) -> None:
    made = MODELS["bert-seq-dense"](torch.float32)
    before = made.found(engine=engine)

    def poisoned() -> Tensor:
        return made.losses() * torch.tensor([1.0, 1.0, float("nan"), 1.0])

    after = flat_gradients(made.model, poisoned, engine=engine)
    assert not bool(after[2].isfinite().any())
    others = [0, 1, 3]
    assert torch.equal(after[others], before[others])


class Reused(nn.Module):
    """One layer used twice, and one whose weight is another one's."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.embedding = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        y: Tensor = self.head(self.twice(torch.tanh(self.twice(x))))
        return y


def test_parameters_used_twice_and_tied_weights_add_up() -> None:
    torch.manual_seed(6)
    model = Reused().double().train()
    ids = torch.tensor([[1, 2, 3], [4, 4, 5], [10, 0, 2]])

    def losses(rows: slice = slice(None)) -> Tensor:
        logits = model(ids[rows])[:, :-1]
        each = functional.cross_entropy(logits.transpose(1, 2), ids[rows][:, 1:], reduction="none")
        return each.sum(dim=1)

    names = list(trainable(model))
    assert names == ["embedding.weight", "twice.bias", "twice.weight"]
    expected = []
    for i in range(len(ids)):
        parts = torch.autograd.grad(losses(slice(i, i + 1)).sum(), list(trainable(model).values()))
        expected.append(torch.cat([part.flatten() for part in parts]))
    assert_close(flat_gradients(model, losses), torch.stack(expected), 1e-12)


def test_dora_is_refused_by_name() -> None:
    made = case(bert(), ["query"], ["classifier"], use_dora=True)
    with pytest.raises(SelfCheckFailed, match=r"lora_magnitude_vector.*must belong to a layer"):
        made.found()


def test_lora_on_embeddings_is_refused_by_name() -> None:
    made = case(bert(), ["query", "word_embeddings"], ["classifier"])
    with pytest.raises(SelfCheckFailed, match=r"lora_embedding_A.*a sum from outside its layer"):
        made.found()


@pytest.mark.parametrize("engine", ["native", "opacus"])
def test_positions_without_a_batch_are_refused_without_its_size(engine: str) -> None:
    made = case(gpt2(), ["c_attn"], ["wpe"], fan_in_fan_out=True)
    with pytest.raises(SelfCheckFailed, match=r"per-sample gradient of .*wpe.* must") as caught:
        made.found(engine=engine)
    assert str(caught.value).endswith("a sample, got other rows")
    assert "(7, 16)" in str(caught.value)  # the parameter's own shape, which is public


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_single_example_gradients_on_cuda(name: str) -> None:
    made = MODELS[name](torch.float64)
    model = made.model.cuda()
    made = Case(model, {k: v.cuda() for k, v in made.inputs.items()}, made.labels.cuda())
    expected = made.alone()
    assert_close(made.found(), expected, 1e-12)
    assert_close(made.found(fused=True), expected, 1e-12)
