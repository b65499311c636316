"""What a site may answer, while its letters are withdrawn and posted again."""

import sys
import threading
from collections.abc import Iterator

import pytest
from flwr.app import Message, RecordDict

import common  # noqa: F401 -- sets what Flower reads on import
from common.flower import become_server
from server.mailbox import Closed, Found, Letter, Mailbox

JOB, CAP = "ab" * 32, 1_000_000
FIRST, SECOND = "01" * 32, "02" * 32


def letter(site: str, message_id: str = FIRST) -> Letter:
    become_server()
    message = Message(RecordDict(), dst_node_id=7, message_type="train")
    return Letter(site, message_id, JOB, message, CAP, lambda _: None)


def test_an_open_letter_is_its_sites_alone() -> None:
    box, own = Mailbox(), letter("A")
    box.post(own)
    assert box.lookup("A", FIRST) == Found(letter=own)
    assert box.lookup("B", FIRST) == Found(is_for_another=True)
    assert box.lookup("A", SECOND) == Found()


def test_a_closed_letter_is_its_sites_alone() -> None:
    box = Mailbox()
    box.post(letter("A"))
    box.withdraw("A", FIRST)
    assert box.lookup("A", FIRST) == Found(closed=Closed("A", CAP))
    assert box.lookup("B", FIRST) == Found(is_for_another=True)


@pytest.fixture
def _switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_switch_often")
def test_a_letter_posted_again_at_any_moment_stays_its_sites_own() -> None:
    """A late reply must find its letter open or closed, with the job's cap in both cases."""
    box, own = Mailbox(), letter("A")
    box.post(own)
    is_over = threading.Event()

    def ask_again() -> None:
        while not is_over.is_set():
            box.withdraw("A", FIRST)
            box.post(own)

    asking = threading.Thread(target=ask_again)
    asking.start()
    seen = [box.lookup("A", FIRST) for _ in range(20_000)]
    is_over.set()
    asking.join()
    # ``post`` and ``withdraw`` each move the letter under the lock: there is no third state.
    assert {(f.letter is None, f.closed is None) for f in seen} <= {(False, True), (True, False)}
    assert not any(found.is_for_another for found in seen)
