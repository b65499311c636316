"""One site's live session: letters out, replies in, until the connection ends or a rule ends it.

Two threads serve it. The one that gRPC gave us yields frames; it asks the mailbox for the next
letter only when the last frame has left, so a slow site holds the pieces of one message, of which
the adapter is all sites' together, and nothing more. The other reads, and waits for room before it
takes a large reply in (server/room.py). The roster is asked before each letter leaves and when each
reply comes in.

Not covered: TLS and identity, one session a site, asking the roster of idle ones (server/link.py).
"""

import threading
from collections.abc import Iterable, Iterator
from typing import Protocol

import grpc
import structlog

from common.errors import Refusal, UpdateRejected
from common.flower import message_to_parts
from common.link import federation_pb2 as wire
from common.link import framing
from common.link.framing import UNKNOWN_JOB_CAP_BYTES, Assembler, Received
from common.link.identity import node_id
from common.trace import exchange_id
from server.mailbox import Letter, Mailbox
from server.room import Room

_HELLO_TIMEOUT_S = 10.0
_VERSION_CHARACTERS = 40

log = structlog.get_logger(__name__)


class SiteRoster(Protocol):
    """Who may take part, as server.roster.Roster keeps it."""

    def check(self, site: str, serial: int, certificate: bytes = b"") -> None:
        """Raise Refusal, in words, if this certificate (its chain, PEM) may not take part now."""


class Session:
    """A site that is connected. ``close`` may be called from any thread, any number of times."""

    def __init__(
        self,
        site: str,
        serial: int,
        mailbox: Mailbox,
        roster: SiteRoster,
        software: str,
        room: Room,
    ) -> None:
        self.site = site
        self._serial = serial
        self._mailbox = mailbox
        self._roster = roster
        self._software = software
        self._room = room
        self._held_bytes = 0  # of the room, by the reply on its way in
        self._is_greeted = False
        self._is_closed = False
        self._last_frame: bytes | None = None
        self._last_sent = 0
        self._assembler = Assembler(self._admit)

    def close(self, reason: str, last_frame: bytes | None = None) -> bool:
        """End the session; ``last_frame`` tells the site why. Only the first call counts.

        Returns:
            Whether this was the first call.
        """
        with self._mailbox.changed:
            if self._is_closed:
                return False
            self._is_closed, self._last_frame = True, last_frame
            self._mailbox.changed.notify_all()
        log.info("site disconnected", site=self.site, reason=reason)
        return True

    def refuse(self, reason: wire.Refusal.Reason, words: str) -> None:
        """End the session because a rule said so."""
        if self.close("refused", framing.refusal(reason, words)):
            log.warning("session refused", site=self.site, reason=words)

    @property
    def is_live(self) -> bool:
        """Greeted and not closed."""
        return self._is_greeted and not self._is_closed

    def frames(self, incoming: Iterable[bytes]) -> Iterator[bytes]:
        """Everything that goes to the site, as the other thread reads what comes from it."""
        threading.Thread(
            target=self._read, args=(incoming,), name=f"link-{self.site}", daemon=True
        ).start()
        if self._wait_for_hello():
            yield framing.welcome(self._software)
            while (letter := self._next_letter()) is not None:
                yield from self._frames_of(letter)
        if self._last_frame is not None:
            yield self._last_frame

    def _wait_for_hello(self) -> bool:
        with self._mailbox.changed:
            self._mailbox.changed.wait_for(
                lambda: self._is_greeted or self._is_closed, _HELLO_TIMEOUT_S
            )
            if self._is_closed:
                return False
        if not self._is_greeted:
            words = f"hello must come within {_HELLO_TIMEOUT_S:.0f} s, got none"
            self.refuse(wire.Refusal.PROTOCOL, words)
        return self._is_greeted

    def _next_letter(self) -> Letter | None:
        """Wait for a letter that this session has not carried; None once closed."""
        found: tuple[int, Letter] | None = None

        def ready() -> bool:
            nonlocal found
            found = self._mailbox.next_for(self.site, self._last_sent)
            return self._is_closed or found is not None

        with self._mailbox.changed:
            self._mailbox.changed.wait_for(ready)
        if self._is_closed or found is None or not self.is_welcome():
            return None
        self._last_sent, letter = found
        return letter

    def _frames_of(self, letter: Letter) -> Iterator[bytes]:
        parts = message_to_parts(letter.message)  # the adapter's bytes are all sites' together
        log.debug("message out", id=_id(letter), site=self.site, bytes=sum(map(len, parts)))
        for frame in framing.split(
            parts,
            message_type=letter.message.metadata.message_type,
            job_sha256=letter.job_sha256,
            message_id=letter.message_id,
        ):
            if self._is_closed:
                return
            yield frame

    def is_welcome(self) -> bool:
        """Ask the roster; a refusal ends the session."""
        try:
            self._roster.check(self.site, self._serial)
        except Refusal as error:
            self.refuse(wire.Refusal.ROSTER, str(error))
            return False
        return True

    def _read(self, incoming: Iterable[bytes]) -> None:
        try:
            for data in incoming:
                frame = framing.parse(data)
                del data  # or every idle site keeps its last frame here
                self._take(frame)
                del frame
                if self._is_closed:
                    return
            self.close("the site closed the stream")
        except grpc.RpcError:
            self.close("the connection broke")
        except UpdateRejected as error:
            self.refuse(wire.Refusal.PROTOCOL, str(error))
        finally:
            self.close("reading ended")
            self._give_back()

    def _take(self, frame: wire.Frame) -> None:
        kind = frame.WhichOneof("body")
        if kind == "hello" and not self._is_greeted:
            self._greet(frame.hello)
        elif kind == "goodbye":
            self.close("the site said goodbye")
        elif not self._is_greeted:
            raise UpdateRejected(f"first frame must be a hello, got a {kind}")
        elif (received := self._assembler.take(frame)) is not None:
            self._receive(received)
            self._give_back()

    def _give_back(self) -> None:
        """Of a reply that is not kept."""
        self._room.give_back(self._held_bytes)
        self._held_bytes = 0

    def _greet(self, hello: wire.Hello) -> None:
        if hello.protocol != framing.PROTOCOL:
            raise UpdateRejected(
                f"protocol version must be {framing.PROTOCOL}, got {hello.protocol}"
            )
        software = hello.software[:_VERSION_CHARACTERS]
        log.info("site connected", site=self.site, serial=f"{self._serial:x}", software=software)
        with self._mailbox.changed:
            self._is_greeted = True
            self._mailbox.changed.notify_all()

    def _admit(self, header: wire.MessageHeader) -> bool:
        """Decide from its header whether a message may come in, and whether anyone wants it."""
        found = self._mailbox.lookup(self.site, header.reply_to)
        if found.letter is not None:
            framing.require_size(header, found.letter.cap_bytes)
            if not self.is_welcome():
                return False
            self._held_bytes = self._room.take(header.total_bytes)
            return True
        if found.is_for_another:
            raise UpdateRejected("reply must be to a message of this site, got one for another's")
        late = found.closed
        framing.require_size(header, UNKNOWN_JOB_CAP_BYTES if late is None else late.cap_bytes)
        reason = "its message is not known" if late is None else "it came too late or twice"
        log.warning(
            "reply dropped",
            id=exchange_id(header.job_sha256, "", header.reply_to),
            site=self.site,
            reason=reason,
            bytes=header.total_bytes,
        )
        return False

    def _receive(self, received: Received) -> None:
        header = received.header
        letter = self._mailbox.lookup(self.site, header.reply_to).letter
        if received.parts is None or letter is None or self._is_closed:
            return
        message = framing.open_received(received)
        self._room.give_back_after(message, self._held_bytes)
        self._held_bytes = 0
        if header.message_type != letter.message.metadata.message_type:
            raise UpdateRejected("reply must be of its message's type, got another")
        if message.metadata.src_node_id != node_id(self.site):
            raise UpdateRejected("reply must name its site as the sender, got another")
        if header.job_sha256 != letter.job_sha256:
            raise UpdateRejected("reply must be of its message's job, got another")
        log.debug("reply in", id=_id(letter), site=self.site, bytes=header.total_bytes)
        self._mailbox.answer(letter, message)


def _id(letter: Letter) -> str:
    return exchange_id(letter.job_sha256, letter.message.metadata.group_id, letter.message_id)
