import contextlib
from collections.abc import Iterable

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UpdateRejected
from common.flower import become_server, message_to_bytes, set_message_id
from common.link import federation_pb2 as wire
from common.link import framing
from common.link.framing import CHUNK_BYTES, Assembler, Received

JOB = "ab" * 32


def admit_up_to(cap_bytes: int) -> Assembler:
    def admit(header: wire.MessageHeader) -> bool:
        framing.require_size(header, cap_bytes)
        return True

    return Assembler(admit)


def assemble(frames: Iterable[bytes], cap_bytes: int = 1 << 24) -> list[Received]:
    assembler = admit_up_to(cap_bytes)
    taken = [assembler.take(framing.parse(frame)) for frame in frames]
    return [received for received in taken if received is not None]


def frames_of(body: bytes) -> list[bytes]:
    return list(
        framing.split(
            body, message_type="train", job_sha256=JOB, message_id="cd" * 32, reply_to="ef" * 32
        )
    )


@given(st.binary(min_size=1, max_size=2000))
def test_what_is_split_comes_together_again(body: bytes) -> None:
    (received,) = assemble(frames_of(body))
    assert received.body == body
    assert received.header.job_sha256 == JOB
    assert (received.header.message_type, received.header.reply_to) == ("train", "ef" * 32)


@pytest.mark.parametrize("size", [CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_long_bodies_travel_in_full_chunks(size: int) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    frames = frames_of(body[:size])
    assert max(map(len, frames)) <= framing.MAX_FRAME_BYTES
    assert len(frames) == 1 + -(-size // CHUNK_BYTES)
    (received,) = assemble(frames)
    assert received.body == body[:size]


@settings(max_examples=30)
@given(st.lists(st.sampled_from([0, 1, 7, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 3])))
def test_a_body_in_pieces_travels_as_it_would_in_one(sizes: list[int]) -> None:
    parts = [bytes([n + 1]) * size for n, size in enumerate(sizes)]
    names = {"message_type": "train", "message_id": "cd" * 32}
    assert list(framing.split(parts, **names)) == list(framing.split(b"".join(parts), **names))


def test_two_messages_may_follow_each_other() -> None:
    bodies = [received.body for received in assemble(frames_of(b"one") + frames_of(b"two"))]
    assert bodies == [b"one", b"two"]


@settings(max_examples=30)
@given(body=st.binary(min_size=1, max_size=24), delta=st.integers(1, 255))
def test_every_change_of_one_byte_is_refused(body: bytes, delta: int) -> None:
    frames = frames_of(body)
    for index, frame in enumerate(frames):
        for position in range(len(frame)):
            changed = bytearray(frame)
            changed[position] ^= delta
            try:
                got = assemble([*frames[:index], bytes(changed), *frames[index + 1 :]])
            except UpdateRejected:
                continue
            assert got == [], f"byte {position} of frame {index}"  # still waiting for more


@given(st.lists(st.binary(max_size=80), max_size=6))
def test_garbage_is_refused_or_incomplete_and_nothing_else(frames: list[bytes]) -> None:
    with contextlib.suppress(UpdateRejected):
        assert assemble(frames) == []


def test_a_message_over_the_cap_is_refused_by_its_header() -> None:
    assembler = admit_up_to(100)
    header = framing.parse(next(framing.split(b"x" * 101, message_type="train")))
    with pytest.raises(UpdateRejected, match="at most 100 bytes, got 101 announced"):
        assembler.take(header)


def test_a_message_at_the_cap_is_taken() -> None:
    assert len(assemble(framing.split(b"x" * 100, message_type="train"), cap_bytes=100)) == 1


@pytest.mark.parametrize("size", [0, 4, 6])
def test_a_chunk_of_another_length_than_announced_is_refused(size: int) -> None:
    header, _ = frames_of(b"12345")
    chunk = wire.Frame(chunk=b"x" * size).SerializeToString()
    with pytest.raises(UpdateRejected, match=f"chunk must have 5 bytes, got {size}"):
        assemble([header, chunk])


def test_many_small_chunks_are_refused_at_the_first() -> None:
    header = frames_of(b"x" * 5000)[0]
    with pytest.raises(UpdateRejected, match=r"must have 5000 bytes, got 1$"):
        assemble([header, wire.Frame(chunk=b"x").SerializeToString()])


def test_a_header_inside_a_message_is_refused() -> None:
    header, _ = frames_of(b"12345")
    with pytest.raises(UpdateRejected, match="inside a message must not be a header"):
        assemble([header, header])


def test_a_chunk_without_a_header_is_refused() -> None:
    with pytest.raises(UpdateRejected, match="between messages must not be a chunk"):
        assemble([frames_of(b"12345")[1]])


def test_an_empty_message_is_refused() -> None:
    with pytest.raises(UpdateRejected, match="total_bytes must be greater than 0"):
        assemble(frames_of(b""))


def test_a_body_that_nobody_wants_passes_by_unread() -> None:
    assembler = Assembler(lambda header: False)
    taken = [assembler.take(framing.parse(frame)) for frame in frames_of(b"12345")]
    assert taken[-1] is not None
    assert taken[-1].body is None


def a_message() -> Message:
    become_server()
    message = Message(RecordDict({"r": ConfigRecord({"round": 3})}), 5, "train", group_id="3")
    set_message_id(message, "cd" * 32)
    return message


def opened(**claims: str) -> Message:
    header = {"message_type": "train", "message_id": "cd" * 32, **claims}
    (received,) = assemble(framing.split(message_to_bytes(a_message()), **header))
    assert received.body is not None
    return framing.open_message(received.header, received.body)


def test_a_message_comes_through_whole() -> None:
    message = opened()
    assert message.content.config_records["r"]["round"] == 3
    assert message.metadata.message_id == "cd" * 32


@pytest.mark.parametrize(
    "claim", [{"message_type": "evaluate"}, {"message_id": "ce" * 32}, {"reply_to": "cd" * 32}]
)
def test_a_message_that_is_not_what_its_header_says_is_refused(claim: dict[str, str]) -> None:
    with pytest.raises(UpdateRejected, match="must be the header's"):
        opened(**claim)


def test_a_body_that_is_no_message_is_refused() -> None:
    with pytest.raises(UpdateRejected, match="must be a Flower message"):
        framing.open_message(wire.MessageHeader(message_type="train"), b"\xff" * 30)
