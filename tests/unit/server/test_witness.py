"""What the server takes as a charge before it looks at its proofs."""

from pathlib import Path

import pytest
from flwr.app import Message

from common.errors import UpdateRejected
from common.flower import become_server
from common.phases import charged
from common.receipt import most_charge_bytes, to_bytes
from server.checkpoint import Checkpoints
from server.witness import confirm
from tests.story import make_job
from tests.unit.common.test_receipt import charge


@pytest.mark.parametrize(("sites", "words"), [(1500, "in a job of 1500 sites"), (2, "head")])
def test_a_charge_that_leaves_the_others_no_room_in_a_receipt_is_refused(
    tmp_path: Path, sites: int, words: str
) -> None:
    """The same bytes are looked at further in a job of two sites, where there is room."""
    become_server()
    job = make_job(sites=[f"s{n}" for n in range(sites)])
    said = charge(15, 24, 900)
    assert most_charge_bytes(1500) < len(to_bytes(said)) < most_charge_bytes(2)
    checkpoints = Checkpoints(f"sqlite:///{tmp_path / 'state.db'}")
    reply = Message(charged(said), dst_node_id=1, message_type="train")
    with pytest.raises(UpdateRejected, match=words):
        confirm(checkpoints, job, 1, "0" * 64, "s0", reply)
    checkpoints.close()
