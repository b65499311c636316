"""What the engine adds up, what it refuses, and what it leaves behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from common.errors import InvalidInput, SelfCheckFailed
from common.privacy.persample import flat_gradients, per_sample_gradients, trainable

INPUTS = torch.arange(1.0, 25.0).view(2, 4, 3) / 7  # (B, T, D)
IDS = torch.tensor([[0, 3, 3, 1], [2, 0, 5, 4]])


class Model(nn.Module):
    """One layer of ours, called by ``use``."""

    def __init__(self, layer: nn.Module, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.layer, x).square().flatten(1).sum(dim=1)


def call(layer: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    y: Tensor = layer(x)
    return y


def alone(model: nn.Module, x: Tensor) -> Tensor:
    rows = []
    for i in range(len(x)):
        parts = torch.autograd.grad(model(x[i : i + 1]).sum(), list(trainable(model).values()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("layer", "use", "x"),
    [
        (nn.Linear(3, 3), lambda layer, x: layer(layer(x).tanh()), INPUTS),
        (nn.Linear(3, 2), lambda layer, x: layer(x[:, 0]), INPUTS),
        (nn.LayerNorm(3), call, INPUTS),
        (nn.LayerNorm(3), lambda layer, x: layer(layer(x) + 2 * x), INPUTS),
        (nn.LayerNorm(3, bias=False), call, INPUTS),
        (nn.RMSNorm(3), call, INPUTS),
        (nn.Embedding(6, 3, padding_idx=0), call, IDS),
        (nn.Conv1d(4, 5, 2), call, INPUTS),
    ],
)
def test_rows_are_the_gradients_of_each_example_alone(
    layer: nn.Module, use: Callable[[Any, Tensor], Tensor], x: Tensor
) -> None:
    torch.manual_seed(2)
    model = Model(layer, use).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3, 0.5)
    x = x.double() if x.is_floating_point() else x
    found = flat_gradients(model, lambda: model(x))
    expected = alone(model, x)
    assert float(expected.abs().max()) > 0.1
    assert float((found - expected).abs().max()) < 1e-12 * float(expected.abs().max())


def state(model: nn.Module) -> list[dict[str, Any]]:
    """Every attribute of every module, hooks among them."""
    return [
        {name: dict(value) if isinstance(value, dict) else value for name, value in vars(m).items()}
        for m in model.modules()
    ]


class Packed(nn.Module):
    """Holds a parameter beside another module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor([0.4, 0.7, 0.9]))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x) * self.scale
        return y


def by_hand(layer: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """A layer's weight used once through the layer and once past it."""
    y: Tensor = layer(x) + x @ layer.weight.T
    return y


@pytest.mark.parametrize(
    ("layer", "use", "x", "words"),
    [
        (nn.Linear(3, 3), by_hand, INPUTS, r"layer\.weight .* a sum from outside its layer"),
        (nn.Linear(3, 3), lambda m, x: x * m(x[:1]), INPUTS, r"layer\.weight .* other rows"),
        (nn.LayerNorm(3), lambda m, x: x * m(x[:1]), INPUTS, r"layer\.weight .* other rows"),
        (nn.Linear(3, 3), lambda m, x: x + 0 * m.bias, INPUTS, r"outside its layer"),
        (Packed(), call, INPUTS, r"layer\.scale must belong .* beside other modules"),
        (nn.BatchNorm1d(4), call, INPUTS, "layer must keep samples apart, got statistics"),
        (nn.BatchNorm1d(4).eval(), call, INPUTS, r"layer\.weight, layer\.bias must belong"),
        (nn.BatchNorm1d(4, track_running_stats=False).eval(), call, INPUTS, "layer must keep"),
        (nn.Bilinear(3, 3, 2), lambda m, x: m(x, x), INPUTS, r"other than one tensor"),
        (nn.Embedding(6, 3, scale_grad_by_freq=True), call, IDS, r"layer\.weight must .*freq"),
        (nn.LSTM(3, 2), lambda m, x: m(x)[0], INPUTS, r"layer\.weight_ih_l0"),
    ],
)
def test_what_clipping_would_miss_is_refused_by_name_and_nothing_stays(
    layer: nn.Module, use: Callable[[Any, Tensor], Tensor], x: Tensor, words: str
) -> None:
    model = Model(layer, use)
    before = state(model)
    with pytest.raises(SelfCheckFailed, match=words):
        flat_gradients(model, lambda: model(x))
    assert state(model) == before
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("engine", ["native", "opacus"])
def test_an_error_in_the_closure_leaves_the_model_as_it_was(engine: str) -> None:
    model = Model(nn.Linear(3, 2), call).train()
    before = state(model)

    def broken() -> Tensor:
        model(INPUTS)
        raise RuntimeError("no labels")

    with pytest.raises(RuntimeError, match="no labels"):
        flat_gradients(model, broken, engine=engine)
    assert state(model) == before
    assert not any(vars(p) for p in model.parameters())


class Words(nn.Module):
    """An embedding and a linear layer, to hang adapters on."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(6, 3)
        self.dense = nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.dense(self.words(ids)).square().sum(dim=(1, 2))
        return y


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_modules": ["words", "dense"]}, "lora_embedding_A"),
        ({"target_modules": ["dense"], "use_dora": True}, "lora_magnitude_vector"),
    ],
)
def test_lora_on_embeddings_and_dora_are_refused_by_name(
    options: dict[str, Any], words: str
) -> None:
    model = get_peft_model(Words(), LoraConfig(r=2, **options))
    with pytest.raises(SelfCheckFailed, match=words):
        flat_gradients(model, lambda: model(IDS))


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.5}, {"lora_bias": True}, {"use_rslora": True}]
)
def test_fusing_leaves_to_peft_what_is_not_the_plain_formula(options: dict[str, Any]) -> None:
    torch.manual_seed(4)
    model = get_peft_model(Words(), LoraConfig(r=2, target_modules=["dense"], **options)).double()
    for parameter in trainable(model).values():
        nn.init.normal_(parameter, 0.2, 0.5)
    rows = []
    for fused in (False, True):
        torch.manual_seed(9)  # the same dropout
        rows.append(flat_gradients(model, lambda: model(IDS), fused=fused))
    assert float((rows[0] - rows[1]).abs().max()) < 1e-12
    assert float(rows[0].abs().max()) > 1e-3


def test_unknown_engines_are_refused_with_the_known_ones() -> None:
    model = Model(nn.Linear(3, 2), call)
    with pytest.raises(InvalidInput, match="one of native, opacus, got 'ghost'"):
        per_sample_gradients(model, lambda: model(INPUTS), engine="ghost")
    with pytest.raises(InvalidInput, match="fused must be false"):
        flat_gradients(model, lambda: model(INPUTS), engine="opacus", fused=True)


def test_losses_that_do_not_depend_on_the_model_are_refused() -> None:
    model = Model(nn.Linear(3, 2), call)
    with pytest.raises(SelfCheckFailed, match=r"layer\.bias .* none"):
        flat_gradients(model, lambda: torch.ones(2))


class Computed(nn.Module):
    """The weight of one layer is computed from another's, which is used for itself as well."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        del self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        self.inner.weight = self.other.weight.tanh()
        y: Tensor = self.inner(x) + self.other(x)
        return y


def test_a_weight_that_is_computed_is_refused_by_its_layers_name() -> None:
    model = Model(Computed(), call)
    with pytest.raises(SelfCheckFailed, match=r"inner\.bias must belong .* computed from others"):
        flat_gradients(model, lambda: model(INPUTS))


class Keyed(nn.Module):
    """Takes a mapping, and beside it a tensor that may be empty in a batch that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, batch: dict[str, Tensor], extra: Tensor) -> Tensor:
        rows: Tensor = self.layer(batch["x"]).view(-1, 4, 2)  # as attention's, it needs rows
        return rows.flatten(1).sum(dim=1) + extra.sum()


@pytest.mark.parametrize("engine", ["native", "opacus"])
def test_only_a_batch_without_rows_has_none(engine: str) -> None:
    model, nothing = Keyed(), torch.empty(0, 6)
    rows = flat_gradients(model, lambda: model({"x": INPUTS}, nothing), engine=engine)
    assert rows.shape == (2, 8)
    assert bool(rows.any())
    empty = flat_gradients(model, lambda: model({"x": INPUTS[:0]}, INPUTS), engine=engine)
    assert empty.shape == (0, 8)


def test_an_empty_batch_is_seen_where_an_inner_module_is_called() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.MultiheadAttention(4, 2))
    model[1].requires_grad_(False)

    def losses() -> Tensor:
        x = model[0](INPUTS[:0])
        y: Tensor = model[1](x, x, x)[0].view(-1, 4).sum(dim=1)
        return y

    assert flat_gradients(model, losses).shape == (0, 16)


@pytest.mark.parametrize("layer", [nn.Linear(3, 3), nn.LayerNorm(3)])
def test_what_follows_may_work_in_place(layer: nn.Module) -> None:
    torch.manual_seed(4)
    model = Model(nn.Sequential(layer, nn.ReLU(inplace=True), nn.Linear(3, 2)), call)
    found = flat_gradients(model, lambda: model(INPUTS))
    assert float((found - alone(model, INPUTS)).abs().max()) < 1e-5


@pytest.mark.parametrize("fused", [False, True])
def test_lora_may_be_followed_in_place_and_its_base_replaced(fused: bool) -> None:
    torch.manual_seed(4)
    lora = LoraConfig(target_modules=["layer"], r=2, init_lora_weights=False)
    model = get_peft_model(Model(nn.Linear(3, 4), lambda m, x: m(x).relu_()), lora)
    base: Any = model.get_submodule("base_model.model.layer.base_layer")
    plain = base.forward
    for replaced in (plain, lambda x: 3 * plain(x)):
        base.forward = replaced
        found = flat_gradients(model, lambda: model(INPUTS), fused=fused)
        assert float((found - alone(model, INPUTS)).abs().max()) < 1e-4


def test_a_samples_row_is_the_same_bits_wherever_it_stands() -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(384, 8, bias=False), nn.Linear(8, 5))
    x = torch.randn(8, 128, 384)
    assert sum(p.numel() for p in model.parameters()) % 2  # rows of odd length lie skewed

    def rows(order: list[int]) -> Tensor:
        return flat_gradients(model, lambda: model(x[order]).square().flatten(1).sum(dim=1))

    first = rows(list(range(8)))
    for turn in range(1, 8):
        order = [(i + turn) % 8 for i in range(8)]
        assert torch.equal(rows(order), first[order])
