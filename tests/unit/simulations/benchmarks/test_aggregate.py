"""What a round does with an update: the memory that it takes, on the real path."""

import hashlib
import logging
from collections.abc import Iterator

import numpy as np
import pytest

from common.flower import become_server, content_to_bytes, message_to_bytes
from server.strategies.base import Round
from simulations.benchmarks import aggregate

SHAPE = (3000, 8)


@pytest.fixture(autouse=True)
def smaller(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    become_server()
    monkeypatch.setattr(aggregate, "SHAPE", SHAPE)
    monkeypatch.setattr(aggregate, "NUMBERS", aggregate.TENSORS * SHAPE[0] * SHAPE[1])
    monkeypatch.setattr(aggregate, "_UPDATES", 3)
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def sent() -> tuple[Round, list[aggregate._Sent]]:
    begun = aggregate._begun()
    pairs = zip(begun.job.sites, aggregate._vectors(), strict=True)
    return begun, [aggregate._as_sent(begun, site, vector) for site, vector in pairs]


def test_an_update_is_held_once_and_copied_twice_while_it_is_opened(
    sent: tuple[Round, list[aggregate._Sent]],
) -> None:
    """Beside the sum. Serialised again, as for its size or its hash, it would take two more."""
    peaks = aggregate._peaks(*sent)
    assert peaks["peak_models"] < 2.1
    assert peaks["peak_models_link"] < 3.3
    assert peaks["peak_models_state"] < 1.5  # (P,) float32 and what is in work


def test_reading_an_arrived_update_makes_nothing_of_its_size(
    sent: tuple[Round, list[aggregate._Sent]],
) -> None:
    begun, updates = sent
    reads = aggregate._Reads(begun, lambda one: one.message)
    reads.take(updates[0])
    assert aggregate._peak(lambda: reads.take(updates[1])) < 0.2


def test_a_receipt_has_the_hash_and_size_that_serialising_again_would_give(
    sent: tuple[Round, list[aggregate._Sent]],
) -> None:
    begun, updates = sent
    reads = aggregate._Reads(begun, aggregate._received)
    for one in updates:
        reads.take(one)
    vectors = np.stack(aggregate._vectors()).astype(np.float64)
    assert np.abs(reads.mean() - vectors.mean(axis=0)).max() < 1e-6
    for one, receipt in zip(updates, reads._book.receipts, strict=True):
        content = content_to_bytes(one.message.content)
        assert receipt.payload_sha256 == hashlib.sha256(content).hexdigest()
        assert receipt.bytes_up == len(message_to_bytes(one.message))
