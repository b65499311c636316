"""The baseline's gradients are autograd's, and without privacy it is plain federated regression."""

import numpy as np
import torch
from torch.nn import functional

from common.privacy.mechanism import Mechanism
from common.privacy.stream import public_keys
from simulations.studies import linear_head


def data(records: int, labels: int = 4, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    features = functional.normalize(torch.randn(records, size, generator=draw))
    return torch.randint(labels, (records,), generator=draw), features


def test_a_record_s_gradient_is_autograds() -> None:
    truth, features = data(9)
    weights = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    found = linear_head.gradients(weights, truth, features)
    for row, label, own in zip(found, truth, features, strict=True):
        asked = weights.clone().requires_grad_()
        loss = functional.cross_entropy((asked @ own)[None], label[None])
        (expected,) = torch.autograd.grad(loss, asked)
        torch.testing.assert_close(row.view_as(asked), expected, rtol=1e-5, atol=1e-6)


def test_what_is_released_is_the_clipped_sum_over_the_public_divisor() -> None:
    """At rate 1 and without noise all records are in it, each at most ``clip_norm`` long."""
    truth, features = data(40)
    weights, clip_norm = torch.zeros(4, 6), 0.5
    mechanism = Mechanism(1.0, 50.0, clip_norm, 0.0, None, public_keys("test"))
    found = linear_head._released(mechanism, weights, (truth, features), 1, 0)
    rows = linear_head.gradients(weights, truth, features).double().numpy()
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    assert (norms > clip_norm).all()
    expected = (rows * clip_norm / norms).sum(axis=0) / 50.0
    assert np.abs(found.numpy().ravel() - expected).max() < 1e-5
