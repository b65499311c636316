"""The span check on gradients made by hand, and the picture as XML."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from common.audit.inversion import Reader, Row, outside, picture, span


def planted(noise: float, *, tokens: int = 6, rank: int = 9) -> tuple[NDArray[np.int64], Reader]:
    """A gradient of ``tokens`` known tokens of a vocabulary of 300, and a reader that tried all."""
    rng = np.random.default_rng(11)
    inputs = rng.normal(size=(300, tokens, rank))
    truth = rng.integers(0, 300, tokens)
    seen = inputs[truth, np.arange(tokens)]
    gradient = rng.normal(size=(40, tokens)) @ seen + noise * rng.normal(size=(40, rank))
    reader = Reader([span(gradient, tokens)])
    for first in range(0, 300, 70):
        reader.take([inputs[first : first + 70]])
    return truth, reader


def test_every_token_is_read_off_a_bare_gradient() -> None:
    truth, reader = planted(0.0)
    found = reader.recovered()
    assert found.right(truth.tolist()) == len(truth)
    assert found.residuals.max() < 1e-6


def test_noise_leaves_nothing_to_read() -> None:
    truth, reader = planted(30.0)
    assert reader.recovered().right(truth.tolist()) <= 1


def test_what_lies_outside_is_pythagoras_other_side() -> None:
    basis = np.eye(5)[:2]
    assert outside(np.array([3.0, 0, 0, 0, 4.0]), basis) == pytest.approx(0.8)
    assert outside(np.array([0.0, 2.0, 0, 0, 0]), basis) == pytest.approx(0.0)


def test_the_picture_is_xml_and_no_token_is_markup() -> None:
    rows = [Row("read <b>", ["<script>", "&", "w" * 40] * 12, [True, False, True] * 12)]
    drawn = ElementTree.fromstring(picture('a "title"', rows, "a note"))
    assert not [one for one in drawn.iter() if one.tag.endswith("script")]
    right = [one for one in drawn.iter() if one.get("class") == "right"]
    assert len(right) == 24
    width = float(str(drawn.get("viewBox")).split()[2])
    boxes = [one for one in drawn.iter() if one.tag.endswith("rect") and one.get("x")]
    assert all(float(str(b.get("x"))) + float(str(b.get("width"))) <= width for b in boxes)
