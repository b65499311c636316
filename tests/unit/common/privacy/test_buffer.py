"""The buffer's sums against einsum."""

import pytest
import torch
from torch import nn

from common.errors import SelfCheckFailed
from common.privacy.buffer import GradientBuffer


def made() -> tuple[GradientBuffer, nn.Parameter, nn.Parameter]:
    bias, weight = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 5))
    return GradientBuffer({"bias": bias, "weight": weight}), bias, weight


def test_outer_products_and_biases_sum_over_tokens_and_uses() -> None:
    buffer, bias, weight = made()
    g, x = torch.randn(3, 4, 2), torch.randn(3, 4, 5)
    buffer.begin(3)
    buffer.rows.fill_(float("nan"))  # whatever the memory held
    buffer.add_outer(weight, g, x, 0.7)
    buffer.add_outer(weight, 2 * g[:, 0], x[:, 1], 1.9)
    buffer.add_over_tokens(bias, g)
    buffer.add_over_tokens(bias, g[:, 2])
    named = buffer.named(buffer.finish())
    expected = 0.7 * torch.einsum("nto,nti->noi", g, x)
    expected += 3.8 * torch.einsum("no,ni->noi", g[:, 0], x[:, 1])
    assert named["weight"].shape == (3, 2, 5)
    assert torch.allclose(named["weight"], expected, atol=1e-5)
    assert torch.allclose(named["bias"], g.sum(dim=1) + g[:, 2], atol=1e-5)
    assert torch.equal(buffer.rows[:, :2], named["bias"])


def test_more_than_one_dimension_of_tokens_is_summed() -> None:
    buffer, _, weight = made()
    g, x = torch.randn(3, 4, 6, 2), torch.randn(3, 4, 6, 5)
    buffer.begin(3)
    buffer.add_outer(weight, g, x)
    expected = torch.einsum("nabo,nabi->noi", g, x)
    assert torch.allclose(buffer.named(buffer.rows)["weight"], expected, atol=1e-5)


def test_a_parameter_without_rows_is_named() -> None:
    buffer, bias, weight = made()
    buffer.begin(3)
    buffer.add(bias, torch.ones(3, 2))
    with pytest.raises(SelfCheckFailed, match=r"of weight must have one row of shape \(2, 5\)"):
        buffer.finish()
    buffer.add(weight, torch.ones(3, 2, 5))
    buffer.finish()
    buffer.begin(3)
    with pytest.raises(SelfCheckFailed, match="of bias must"):
        buffer.finish()


def test_rows_of_another_number_are_refused_without_saying_either() -> None:
    buffer, bias, _ = made()
    buffer.begin(37)
    with pytest.raises(SelfCheckFailed, match=r"of bias .* got other rows") as caught:
        buffer.add(bias, torch.ones(1, 2))  # it would broadcast
    assert "37" not in str(caught.value)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_rows_are_float32_or_wider(held: torch.dtype, expected: torch.dtype) -> None:
    weight = nn.Parameter(torch.zeros(2, 5, dtype=held))
    buffer = GradientBuffer({"weight": weight})
    buffer.begin(3)
    buffer.add_outer(weight, torch.ones(3, 2, dtype=held), torch.ones(3, 5, dtype=held))
    assert buffer.finish().dtype == expected


def test_a_scalar_parameter_has_one_number_a_sample() -> None:
    gain = nn.Parameter(torch.tensor(0.3))
    buffer = GradientBuffer({"gain": gain})
    buffer.begin(3)
    buffer.add(gain, torch.tensor([0.2, 0.4, 0.9]))
    assert buffer.named(buffer.finish())["gain"].tolist() == pytest.approx([0.2, 0.4, 0.9])
