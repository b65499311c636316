"""Replies against a round's book: over a grid that answers as it is told."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from common import messages
from common.adapter import LoadedAdapter, load_adapter, vector_sha256
from common.errors import Refusal, UpdateRejected
from common.flower import become_server, message_to_bytes, set_message_id
from common.job import Job
from common.link.identity import node_id
from common.messages import Update
from common.phases import RELEASE
from common.privacy.ledger import Head
from server.round import RoundBook, collect, open_book

MakeJob = Callable[..., Job]


class Told(Grid):
    """Yields, for each batch of messages sent, the replies that the next rule makes of it."""

    def __init__(self, *rules: Callable[[list[Message]], list[Message]]) -> None:
        self.rules = list(rules)
        self.sent: list[list[int]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        batch = list(messages)
        self.sent.append([m.metadata.dst_node_id for m in batch])
        yield from self.rules.pop(0)(batch)

    def set_run(self, run: Any) -> None: ...  # noqa: ANN401

    @property
    def run(self) -> Any: ...  # noqa: ANN401

    def create_message(self, *_: Any, **__: Any) -> Message: ...  # type: ignore[empty-body]  # noqa: ANN401

    def get_node_ids(self) -> Iterable[int]: ...  # type: ignore[empty-body]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]: ...  # type: ignore[empty-body]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]: ...  # type: ignore[empty-body]


HEAD = Head(3, "ab" * 32, "cd" * 72, "ef" * 91)


@pytest.fixture
def made(make_job: MakeJob) -> Job:
    return make_job(training={"quorum": 2}, data={"population": {"A": 30, "B": 50, "C": 40}})


@pytest.fixture
def adapter(made: Job) -> LoadedAdapter:
    return load_adapter(made, Path(made.model.base), "cpu")


@pytest.fixture
def book(made: Job, adapter: LoadedAdapter) -> RoundBook:
    become_server()
    return open_book(made, adapter, 1, adapter.initial)


def orders(made: Job) -> list[Message]:
    asked = []
    for n, site in enumerate(made.sites):
        message = Message(RecordDict(), node_id(site), messages.TRAIN, group_id="1")
        set_message_id(message, f"{n:064x}")
        asked.append(message)
    return asked


def reply(book: RoundBook, to: Message, value: float = 0.5) -> Message:
    vector = np.full(book.adapter.table.size, value, dtype=np.float32)
    made = Update(vector, 1, vector_sha256(book.adapter.initial), 2, 2, HEAD)
    return Message(messages.update(book.job, book.adapter.table, made), reply_to=to)


def confirm(*_: object) -> RecordDict:
    return RecordDict()


def read_all(grid: Grid, made: Job, book: RoundBook) -> list[tuple[str, int]]:
    """A round in which every charge was confirmed before."""
    used = []
    book.confirmed |= set(made.sites)
    for message in collect(grid, orders(made), book, confirm):
        if (found := book.read(message)) is not None:
            used.append((book.receipts[-1].site, round(10 * float(found.vector[0]))))
    return used


def test_every_reply_is_used_once_with_its_public_weight(made: Job, book: RoundBook) -> None:
    (first, *_) = orders(made)
    book.confirmed.add("A")
    change = book.read(reply(book, first))
    assert change is not None
    assert change.weight == pytest.approx(30 / 120)


def test_a_second_reply_of_a_site_counts_for_nothing(made: Job, book: RoundBook) -> None:
    def twice(batch: list[Message]) -> list[Message]:
        return [
            reply(book, batch[0], 0.1),
            reply(book, batch[0], 0.9),
            reply(book, batch[1], 0.2),
            reply(book, batch[2], 0.3),
            reply(book, batch[1], 0.8),
        ]

    used = read_all(Told(twice), made, book)
    assert used == [("A", 1), ("B", 2), ("C", 3)]
    assert [r.site for r in book.receipts] == ["A", "B", "C"]


def test_a_round_closes_on_its_quorum_at_the_deadline(made: Job, book: RoundBook) -> None:
    grid = Told(lambda batch: [reply(book, m) for m in batch[:2]])
    assert len(read_all(grid, made, book)) == 2
    assert len(grid.sent) == 1


def test_without_a_quorum_only_those_that_have_not_answered_are_asked_again(
    made: Job, book: RoundBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.round.time.sleep", lambda _: None)
    grid = Told(
        lambda batch: [reply(book, batch[0])],
        lambda _: [],
        lambda batch: [reply(book, batch[1])],
    )
    assert [site for site, _ in read_all(grid, made, book)] == ["A", "C"]
    rest = [node_id("B"), node_id("C")]
    assert grid.sent == [[node_id("A"), *rest], rest, rest]


@pytest.mark.parametrize(("pause_s", "least"), [(None, 2.9), (0.0, 0.0)])
def test_the_pause_before_asking_again_is_the_servers_unless_told(
    made: Job,
    book: RoundBook,
    monkeypatch: pytest.MonkeyPatch,
    pause_s: float | None,
    least: float,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("server.round.time.sleep", slept.append)
    grid = Told(lambda _: [], lambda batch: [reply(book, m) for m in batch])
    book.confirmed |= set(made.sites)
    for message in collect(grid, orders(made), book, confirm, pause_s=pause_s):
        book.read(message)
    assert len(slept) == 1
    assert least <= slept[0] <= (3.0 if least else 0.0)


def test_a_round_that_can_have_no_quorum_says_who_refused_and_why(
    made: Job, book: RoundBook
) -> None:
    def answers(batch: list[Message]) -> list[Message]:
        refused = messages.verdict(accepted=False, reason="epsilon must be less")
        return [
            reply(book, batch[0]),
            Message(refused, reply_to=batch[1]),
            Message(messages.verdict(accepted=False, reason="no charge"), reply_to=batch[2]),
        ]

    with pytest.raises(Refusal, match=r"2 usable updates, got 1 \(B: epsilon must be less; C: no"):
        read_all(Told(answers), made, book)


def broken(to: Message) -> Message:
    return Message(Error(0, "a record's text"), reply_to=to)


def troubled(to: Message) -> Message:
    return Message(messages.verdict(accepted=False, reason=messages.IN_TROUBLE), reply_to=to)


def waiting(to: Message) -> Message:
    return Message(messages.verdict(accepted=False, reason=messages.WAITING), reply_to=to)


def test_a_site_where_a_person_decides_is_asked_again(
    made: Job,
    book: RoundBook,
    monkeypatch: pytest.MonkeyPatch,
    logs: Any,  # noqa: ANN401
) -> None:
    monkeypatch.setattr("server.round.ASK_AGAIN_S", 0.2)
    grid = Told(
        lambda batch: [reply(book, batch[0]), waiting(batch[1]), waiting(batch[2])],
        lambda batch: [waiting(batch[0]), reply(book, batch[1])],
    )
    assert [site for site, _ in read_all(grid, made, book)] == ["A", "C"]
    assert book.refused == {}
    assert logs.text.count("job waits for a person") == 3


@pytest.mark.parametrize("fault", [broken, troubled])
def test_a_site_in_trouble_is_asked_again_after_a_pause(
    fault: Callable[[Message], Message],
    made: Job,
    book: RoundBook,
    monkeypatch: pytest.MonkeyPatch,
    logs: Any,  # noqa: ANN401
) -> None:
    monkeypatch.setattr("server.round.ASK_AGAIN_S", 0.2)
    grid = Told(
        lambda batch: [reply(book, batch[0]), fault(batch[1]), fault(batch[2])],
        lambda batch: [fault(batch[0]), reply(book, batch[1])],
    )
    begun = time.monotonic()
    assert [site for site, _ in read_all(grid, made, book)] == ["A", "C"]
    assert time.monotonic() - begun >= 0.2
    assert grid.sent[1:] == [[node_id("B"), node_id("C")]]
    assert book.refused == {}
    assert logs.text.count("site is in trouble") == 3
    assert "a record's text" not in logs.text


def test_a_site_in_trouble_holds_up_no_round_that_has_its_quorum(
    made: Job, book: RoundBook
) -> None:
    grid = Told(lambda batch: [broken(batch[0]), reply(book, batch[1]), reply(book, batch[2])])
    begun = time.monotonic()
    assert [site for site, _ in read_all(grid, made, book)] == ["B", "C"]
    assert time.monotonic() - begun < 2


def test_bytes_are_counted_for_every_reply_used_or_not(made: Job, book: RoundBook) -> None:
    first, second, _ = orders(made)
    book.confirmed.add("A")
    book.read(reply(book, first))
    used = book.bytes_up
    assert used > 4 * book.adapter.table.size
    book.read(Message(messages.verdict(accepted=False, reason="no"), reply_to=second))
    assert used < book.bytes_up < 2 * used
    assert book.accepted == 1


def test_bytes_down_are_those_of_every_message_to_every_site(made: Job, book: RoundBook) -> None:
    packed = messages.pack_global(book.adapter.initial, book.adapter.table)
    sent: list[Message] = []

    def order(site: str) -> Message:
        content = RecordDict({**packed, "own": ConfigRecord({"site": site * 40 * len(sent)})})
        sent.append(Message(content, node_id(site), messages.TRAIN, group_id="1"))
        return sent[-1]

    def yes(batch: list[Message]) -> list[Message]:
        sent.extend(batch)
        return [reply(book, message) for message in batch]

    grid = Told(lambda batch: [charge(message) for message in batch], yes)
    asked = [order(site) for site in made.sites]
    for n, message in enumerate(asked):
        set_message_id(message, f"{n:064x}")
    for message in collect(grid, asked, book, lambda *_: RecordDict({"w": ConfigRecord({"a": 1})})):
        book.read(message)
    assert len(sent) == 2 * len(made.sites)
    assert book.sent.bytes == sum(len(message_to_bytes(message)) for message in sent)
    assert book.sent.bytes > len(made.sites) * 4 * book.adapter.table.size


def test_what_is_asked_twice_is_sent_twice_and_what_is_kept_back_is_not(
    made: Job, book: RoundBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.round.ASK_AGAIN_S", 0.0)
    asked = orders(made)
    sizes = [len(message_to_bytes(message)) for message in asked]

    def twice() -> Told:
        return Told(lambda batch: [reply(book, batch[0])], lambda batch: [reply(book, batch[0])])

    read_all(twice(), made, book)
    assert book.sent.bytes == 2 * sum(sizes) - sizes[0]
    book.sent.bytes, book.receipts = 0, []
    grid = twice()
    grid.kept_back = {node_id(made.sites[2])}  # type: ignore[attr-defined]
    read_all(grid, made, book)
    assert book.sent.bytes == sizes[0] + 2 * sizes[1]


def charge(to: Message) -> Message:
    return Message(RecordDict({"charge": ConfigRecord({"signed": b"{}"})}), reply_to=to)


def answered(book: RoundBook, to: Message, value: float) -> Message:
    set_message_id(to, f"{to.metadata.dst_node_id:064x}")  # as a grid would
    return reply(book, to, value)


def test_an_update_comes_only_after_its_charge_was_confirmed(made: Job, book: RoundBook) -> None:
    said: list[tuple[str, str]] = []

    def keep(site: str, input_sha256: str, given: Message) -> RecordDict:
        said.append((site, input_sha256))
        return RecordDict({"said": ConfigRecord({"to": site})})

    def release(batch: list[Message]) -> list[Message]:
        assert [m.metadata.message_type for m in batch] == [RELEASE] * 2
        assert [m.content.config_records["said"]["to"] for m in batch] == ["A", "C"]
        return [answered(book, m, 0.1 * n) for n, m in enumerate(batch, start=1)]

    grid = Told(lambda b: [charge(b[0]), reply(book, b[1], 0.7), charge(b[2])], release)
    used = [m for m in collect(grid, orders(made), book, keep) if book.read(m) is not None]
    assert [r.site for r in book.receipts if r.accepted] == ["A", "C"]
    assert len(used) == 2
    assert book.refused == {"B": "update must follow its confirmed charge, got none"}
    assert said == [("A", book.input_sha256), ("C", book.input_sha256)]


def test_a_rejected_charge_is_answered_by_nothing_and_named(
    made: Job,
    book: RoundBook,
    logs: Any,  # noqa: ANN401
) -> None:
    def keep(site: str, input_sha256: str, given: Message) -> RecordDict:
        if site == "A":
            raise UpdateRejected("charge's entry 2 must match its hash, got other bytes")
        return RecordDict()

    grid = Told(
        lambda batch: [charge(m) for m in batch],
        lambda batch: [answered(book, m, 0.1) for m in batch],
    )
    assert len([m for m in collect(grid, orders(made), book, keep) if book.read(m)]) == 2
    assert grid.sent[1] == [node_id("B"), node_id("C")]
    assert "must match its hash" in book.refused["A"]
    assert "charge rejected" in logs.text


def test_a_site_that_falls_silent_after_its_charge_is_asked_again(
    made: Job, book: RoundBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.round.ASK_AGAIN_S", 0.0)
    grid = Told(
        lambda batch: [charge(batch[0]), charge(batch[1])],
        lambda batch: [answered(book, batch[0], 0.1)],  # B was confirmed, and is gone
        lambda batch: [charge(batch[0])],
        lambda batch: [answered(book, batch[0], 0.2)],
    )
    for message in collect(grid, orders(made), book, confirm):
        book.read(message)
    assert [r.site for r in book.receipts] == ["A", "B"]
    rest = [node_id("B"), node_id("C")]
    assert grid.sent[2:] == [rest, [node_id("B")]]
