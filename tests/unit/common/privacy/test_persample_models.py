"""The engine on real architectures. Oracles: one backward pass an example, and Opacus."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from common.errors import SelfCheckFailed
from common.model import locate
from common.privacy.persample import flat_gradients, flatten, per_sample_gradients, trainable

Targets = str | tuple[str, ...]

LENGTHS = (9, 4, 7)
VOCABULARY = 61
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}

QUERY_VALUE = ("query", "value")
DENSE = ("query", "key", "value", "dense")


@dataclass(frozen=True)
class Case:
    """A model with an adapter, ragged inputs and their labels, a row each."""

    model: nn.Module
    input_ids: Tensor
    mask: Tensor
    labels: Tensor
    per_token: bool

    def losses(self, rows: slice = slice(None), model: nn.Module | None = None) -> Tensor:
        logits = (model or self.model)(
            input_ids=self.input_ids[rows], attention_mask=self.mask[rows]
        ).logits
        labels = self.labels[rows]
        if not self.per_token:
            return functional.cross_entropy(logits, labels, reduction="none")
        each = functional.cross_entropy(logits.mT, labels, reduction="none")
        return each.sum(dim=1)


def bert(kind: Callable[..., nn.Module]) -> nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.num_labels = 5
    return kind(config)


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=24,
        n_layer=2,
        n_head=3,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def minilm(kind: type) -> nn.Module:
    model: nn.Module = kind.from_pretrained(  # type: ignore[attr-defined]
        locate("builtin:minilm"),
        num_labels=5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return model


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Any, bool]] = {
    "seq": (lambda: bert(BertForSequenceClassification), TaskType.SEQ_CLS, False),
    "tok": (lambda: bert(BertForTokenClassification), TaskType.TOKEN_CLS, True),
    "llama": (llama, TaskType.CAUSAL_LM, True),
    "gpt2": (gpt2, TaskType.CAUSAL_LM, True),
    "minilm-seq": (lambda: minilm(AutoModelForSequenceClassification), TaskType.SEQ_CLS, False),
    "minilm-tok": (lambda: minilm(AutoModelForTokenClassification), TaskType.TOKEN_CLS, True),
}


def make(
    name: str,
    targets: Targets,
    dtype: torch.dtype = torch.float32,
    lengths: tuple[int, ...] = LENGTHS,
    **lora: object,
) -> Case:
    torch.manual_seed(5)
    build, task, per_token = ARCHITECTURES[name]
    named = targets if isinstance(targets, str) else list(targets)
    options: dict[str, Any] = {"r": 3, "lora_alpha": 7, "lora_dropout": 0.0} | lora
    config = LoraConfig(task_type=task, target_modules=named, **options)
    model = get_peft_model(build(), config).to(dtype).train()
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.normal_(0, 0.02 if name.startswith("minilm") else 0.1)
    mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    input_ids = torch.randint(1, VOCABULARY, mask.shape) * mask
    labels = torch.randint(0, 5, mask.shape if per_token else mask.shape[:1])
    if per_token:
        labels = labels.masked_fill(mask == 0, -100)
    return Case(model, input_ids, mask, labels, per_token)


def one_by_one(case: Case) -> Tensor:
    """n backward passes of plain autograd, each over a batch of one."""
    rows = []
    parameters = list(trainable(case.model).values())
    for i in range(len(case.labels)):
        (loss,) = case.losses(slice(i, i + 1))
        parts = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def require_close(found: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Relative to the largest number where that is above 1, as rounding is."""
    bound = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    largest = float(expected.abs().max())
    assert found.shape == expected.shape
    assert largest > 1e-2
    assert float((found - expected).abs().max()) < bound * max(1.0, largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("seq", QUERY_VALUE),
        ("seq", "all-linear"),
        ("tok", QUERY_VALUE),
        ("tok", DENSE),
        ("llama", ("q_proj", "v_proj")),
        ("llama", "all-linear"),
        ("gpt2", ("c_attn",)),
        ("gpt2", "all-linear"),
        pytest.param("minilm-seq", QUERY_VALUE, marks=pytest.mark.slow),
        pytest.param("minilm-seq", "all-linear", marks=pytest.mark.slow),
        pytest.param("minilm-tok", QUERY_VALUE, marks=pytest.mark.slow),
        pytest.param("minilm-tok", DENSE, marks=pytest.mark.slow),
    ],
)
def test_rows_are_the_single_example_gradients_and_opacus_own(
    name: str, targets: Targets, fused: bool, dtype: torch.dtype
) -> None:
    case = make(name, targets, dtype)
    found = flat_gradients(case.model, case.losses, fused=fused)
    expected = one_by_one(case)
    assert found.dtype == dtype
    require_close(found, expected)
    require_close(flat_gradients(case.model, case.losses, engine="opacus"), expected)
    assert bool((expected.abs().amax(dim=0) > 0).float().mean() > 0.9)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("name", "targets", "options"),
    [
        ("seq", DENSE, {}),
        ("llama", "all-linear", {}),
        ("llama", ("q_proj",), {"modules_to_save": ["input_layernorm", "lm_head"]}),
    ],
)
def test_gradient_checkpointing_changes_nothing(
    name: str, targets: Targets, options: dict[str, Any], reentrant: bool, fused: bool
) -> None:
    case = make(name, targets, torch.float64, **options)
    expected = one_by_one(case)
    model: Any = case.model
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    require_close(flat_gradients(model, case.losses, fused=fused), expected)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ["seq", "llama", "gpt2"])
def test_micro_batches_give_the_rows_of_the_whole_batch(name: str, size: int) -> None:
    case = make(name, "all-linear", torch.float64, lengths=(9, 4, 7, 9, 2, 5, 8))
    whole = flat_gradients(case.model, case.losses)
    parts = [
        flat_gradients(case.model, lambda i=i: case.losses(slice(i, i + size)))  # type: ignore[misc]
        for i in range(0, 7, size)
    ]
    require_close(torch.cat(parts), whole)


@pytest.mark.parametrize("engine", ["native", "opacus"])
@pytest.mark.parametrize("name", ["seq", "llama", "gpt2"])
def test_a_batch_of_no_rows_has_gradients_of_no_rows(name: str, engine: str) -> None:
    case = make(name, "all-linear")
    for compute in (lambda: case.losses(slice(0, 0)), lambda: torch.empty(0)):
        found = per_sample_gradients(case.model, compute, engine=engine)
        shapes = {n: (0, *p.shape) for n, p in trainable(case.model).items()}
        assert {n: tuple(rows.shape) for n, rows in found.items()} == shapes
    after = flat_gradients(case.model, case.losses, engine=engine)
    require_close(after, one_by_one(case))


@pytest.mark.parametrize("fused", [False, True])
def test_autocast_rows_are_float32_and_within_bf16_rounding(fused: bool) -> None:
    case = make("seq", "all-linear")
    expected = one_by_one(case)

    def losses() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return case.losses()

    found = flat_gradients(case.model, losses, fused=fused)
    assert found.dtype == torch.float32
    # bf16 keeps 8 bits, so each product is off by up to 2^-8, and some ten layers add up.
    require_close(found, expected, tolerance=10 * 2**-8)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # around the backward pass as well
        require_close(flat_gradients(case.model, case.losses, fused=fused), found, 2**-8)


@pytest.mark.parametrize("fused", [False, True])
def test_a_bf16_model_fills_a_float32_buffer(fused: bool) -> None:
    case = make("llama", "all-linear")
    case.model.to(torch.bfloat16)
    expected = one_by_one(case).float()
    found = flat_gradients(case.model, case.losses, fused=fused)
    assert found.dtype == torch.float32
    require_close(found, expected, tolerance=20 * 2**-8)  # both are rounded to bf16


@pytest.mark.parametrize("engine", ["native", "opacus"])
def test_a_row_that_is_not_finite_leaves_the_others_alone(engine: str) -> None:
    case = make("seq", DENSE)
    weights = torch.tensor([3.0, float("nan"), 0.7])
    clean = flat_gradients(
        case.model, lambda: case.losses() * weights.nan_to_num(2.0), engine=engine
    )
    found = flat_gradients(case.model, lambda: case.losses() * weights, engine=engine)
    assert bool(found[1].isnan().any())
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize(
    ("name", "targets", "options"),
    [
        ("seq", QUERY_VALUE, {"modules_to_save": ["classifier", "LayerNorm"]}),
        ("seq", QUERY_VALUE, {"modules_to_save": ["classifier", "word_embeddings"]}),
        ("seq", QUERY_VALUE, {"lora_bias": True}),
        ("seq", QUERY_VALUE, {"use_rslora": True}),
        ("llama", ("q_proj",), {"modules_to_save": ["embed_tokens"]}),
        ("llama", "all-linear", {"modules_to_save": ["norm", "input_layernorm"]}),
        ("gpt2", ("c_attn",), {"modules_to_save": ["c_fc"]}),
    ],
)
def test_other_layers_and_kinds_of_lora(
    name: str, targets: Targets, options: dict[str, Any]
) -> None:
    case = make(name, targets, torch.float64, **options)
    expected = one_by_one(case)
    require_close(flat_gradients(case.model, case.losses), expected)
    require_close(flat_gradients(case.model, case.losses, fused=True), expected)


class Tied(nn.Module):
    """One layer used twice, and one whose weight is another one's."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.embedding = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        x = self.embedding(input_ids) * attention_mask[..., None]
        return SimpleNamespace(logits=self.head(self.twice(torch.tanh(self.twice(x)))))


def test_parameters_used_twice_and_tied_weights_add_up() -> None:
    torch.manual_seed(6)
    ids = torch.tensor([[1, 2, 3], [4, 4, 5], [10, 0, 2]])
    case = Case(Tied().double(), ids, (ids > 0).double(), ids.roll(-1, dims=1), per_token=True)
    assert list(trainable(case.model)) == ["embedding.weight", "twice.bias", "twice.weight"]
    require_close(flat_gradients(case.model, case.losses), one_by_one(case))


@pytest.mark.parametrize("engine", ["native", "opacus"])
def test_positions_without_a_batch_are_refused_without_its_size(engine: str) -> None:
    case = make("gpt2", ("c_attn",), modules_to_save=["wpe"])
    with pytest.raises(SelfCheckFailed, match=r"per-sample gradient of .*wpe.* must") as caught:
        flat_gradients(case.model, case.losses, engine=engine)
    assert str(caught.value).endswith("a sample, got other rows")
    assert "(16, 24)" in str(caught.value)  # the parameter's own shape, which is public


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["seq", "tok", "llama", "gpt2"])
def test_rows_are_the_single_example_gradients_on_cuda(name: str, fused: bool) -> None:
    made = make(name, "all-linear", torch.float64)
    tensors = (made.input_ids.cuda(), made.mask.cuda(), made.labels.cuda())
    case = Case(made.model.cuda(), *tensors, made.per_token)
    require_close(flat_gradients(case.model, case.losses, fused=fused), one_by_one(case))


def test_values_are_views_of_one_buffer_in_name_order() -> None:
    case = make("seq", DENSE)
    rows = per_sample_gradients(case.model, case.losses)
    assert list(rows) == list(trainable(case.model))
    assert len({part.untyped_storage().data_ptr() for part in rows.values()}) == 1
    assert torch.equal(flatten(rows), flat_gradients(case.model, case.losses))
