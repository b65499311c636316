"""Predicted bytes against those that a real federation in one process sends, signatures and all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.traffic import traffic
from common import pki
from common.adapter import load_adapter
from common.flower import message_to_bytes
from common.job import Job
from common.messages import CLOSE, TRAIN
from common.phases import RELEASE
from common.receipt import ServerKey

ROUNDS = 4


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["fp32", "bf16"])
def test_bytes_are_those_of_a_real_federations_messages(
    codec: str,
    make_job: Callable[..., Job],
    federation: Callable[..., Any],
) -> None:
    training = {"rounds": ROUNDS, "codec": codec}
    job = make_job(adapter={"targets": ["query", "value"], "rank": 16}, training=training)
    fed = federation(job)
    root = pki.create_root("traffic")
    issued = pki.issue_server(pki.create_intermediate(root), ["127.0.0.1"])
    fed.server_key = lambda: ServerKey(issued.certificate, issued.key)
    for site in fed.sites.values():
        (site.home.folder / "pki").mkdir(exist_ok=True)
        (site.home.folder / "pki/root.pem").write_bytes(root.certificate)
    fed.run()
    found = traffic(job, load_adapter(job, Path(job.model.base), "cpu").layout)
    for predicted, sent in ((found.up_round, fed.replies), (found.down_round, fed.requests)):
        sizes = [
            (name, m.metadata.message_type, len(message_to_bytes(m)))
            for name, m in sent
            if m.metadata.message_type in (TRAIN, RELEASE)
        ]
        assert len(sizes) == 2 * 2 * ROUNDS
        for site in job.sites:
            of_site = [size for name, _, size in sizes if name == site]
            rounds = [a + b for a, b in zip(of_site[::2], of_site[1::2], strict=True)]
            # Two messages, with what Flower adds, and proofs that grow.
            assert all(abs(size - predicted) < 1200 for size in rounds[1:]), (rounds, predicted)
            # The first order has no receipt, and the close brings the last one.
            last = [
                len(message_to_bytes(m))
                for name, m in sent
                if name == site and m.metadata.message_type == CLOSE and sent is fed.requests
            ]
            assert len(last) == (sent is fed.requests)
            whole = sum(rounds) + sum(last)
            assert abs(whole - ROUNDS * predicted) < 0.05 * whole
    charges = [len(message_to_bytes(m)) for _, m in fed.replies if m.metadata.message_type == TRAIN]
    assert min(charges) > 2400  # so that one left out of the estimate would show
    assert (found.up, found.down) == (ROUNDS * found.up_round, ROUNDS * found.down_round)
