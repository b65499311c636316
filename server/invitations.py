"""Invitations: who may make first contact by a token, for how long, and who did.

One JSON file under a lock, replaced atomically, so that ``fl-server invite`` and a running server
share it and a restart forgets nothing. Of a secret only its sha256 is kept. An invitation is bound
to the first key that shows the secret before anything is issued: no other key gets in by it, in no
race and after no crash, and that key, asking again within minutes because the answer was lost, gets
the same certificate again.

Not covered: the port (server/joining.py).
"""

import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import AwareDatetime, Field

from common.config import Flag, Name, Section, Sha256, parse
from common.errors import InvalidInput, Refusal
from common.failpoints import reach, register
from common.files import exists, locked, write_file
from common.invitation import new_secret
from common.strict_json import read_json

INVITATIONS_FILE = "invitations.json"
MOST_HOURS = 24 * 14
_MAX_BYTES = 4 * 1024 * 1024
_ASK_AGAIN = dt.timedelta(minutes=2)

register("server.invitation-claimed", "server.invitation-enrolled")

Issue = Callable[[bool], bytes]


class UnknownSecret(Refusal):
    """A secret of no invitation: a guess, or a token that is over."""


class Invitation(Section):
    """One and its fate: the key that claimed it, and the answer once that was enrolled."""

    site: Name
    secret_sha256: Sha256
    expires: AwareDatetime
    replace: Flag = False
    key_sha256: Sha256 | None = None
    answer: str | None = None


class _File(Section):
    version: int = Field(default=1, ge=1, le=1)
    invitations: tuple[Invitation, ...] = ()


class Invitations:
    """The file of one server home; safe to share between threads and processes."""

    def __init__(self, home: Path) -> None:
        self._path = home / INVITATIONS_FILE

    def standing(self, *, now: dt.datetime | None = None) -> tuple[Invitation, ...]:
        """Those that have not expired, oldest first.

        Raises:
            InvalidInput: the file is none of invitations.
        """
        moment = now or dt.datetime.now(dt.UTC)
        return tuple(i for i in self._read().invitations if i.expires > moment)

    def invite(
        self, site: str, hours: float, *, replace: bool = False, now: dt.datetime | None = None
    ) -> tuple[Invitation, bytes]:
        """A new invitation and its secret; an earlier one of the site ends.

        Raises:
            InvalidInput: ``hours`` out of range, or the file is none of invitations.
            StorageFailed: it could not be written; nobody is invited.
        """
        if not 0 < hours <= MOST_HOURS:
            raise InvalidInput(f"hours must be in (0, {MOST_HOURS}], got {hours:g}")
        moment, secret = now or dt.datetime.now(dt.UTC), new_secret()
        made = Invitation(
            site=site,
            secret_sha256=_hash(secret),
            expires=moment + dt.timedelta(hours=hours),
            replace=replace,
        )
        with self._locked():
            others = tuple(i for i in self.standing(now=moment) if i.site != site)
            self._write((*others, made))
        return made, secret

    def cancel(self, site: str) -> int:
        """End the invitations of ``site``; returns how many stood.

        Raises:
            InvalidInput: the file is none of invitations.
            StorageFailed: it could not be written; they stand.
        """
        with self._locked():
            standing = self.standing()
            kept = tuple(i for i in standing if i.site != site)
            if len(kept) < len(standing):
                self._write(kept)
        return len(standing) - len(kept)

    def redeem(
        self,
        secret: bytes,
        site: str,
        key_sha256: str,
        issue: Issue,
        *,
        now: dt.datetime | None = None,
    ) -> bytes:
        """What ``issue`` gives for the invitation, called once for it however often it is shown.

        Args:
            secret: as the token has it.
            site: whose request it is.
            key_sha256: the request's key.
            issue: enrols the site, replacing its key if told so; durable when it returns.
            now: the moment to look at.

        Raises:
            Refusal: no such invitation stands, or it is another site's or another key's.
            InvalidInput: what ``issue`` refuses; the invitation is as it was then.
            StorageFailed: in doubt; the same key may ask again.
        """
        moment = now or dt.datetime.now(dt.UTC)
        with self._locked():
            found = self._find(secret, moment)
            if found.site != site:
                raise Refusal(f"invitation must be for the site that asks, {site}, got another's")
            if found.key_sha256 not in (None, key_sha256):
                raise Refusal("invitation must be unused, got one that another key has used")
            if found.answer is not None:
                return found.answer.encode()
            claimed = self._replace(found, key_sha256=key_sha256)
            reach("server.invitation-claimed")
            try:
                answer = issue(claimed.replace)
            except InvalidInput:
                self._replace(claimed, key_sha256=found.key_sha256)
                raise
            reach("server.invitation-enrolled")
            expires = min(claimed.expires, moment + _ASK_AGAIN)
            self._replace(claimed, answer=answer.decode("ascii"), expires=expires)
        return answer

    def _find(self, secret: bytes, moment: dt.datetime) -> Invitation:
        wanted, found = _hash(secret), None
        for invitation in self.standing(now=moment):  # all of them, for equal times
            if hmac.compare_digest(invitation.secret_sha256, wanted):
                found = invitation
        if found is None:
            raise UnknownSecret(
                "invitation must stand, got one that was used, has expired or never was"
            )
        return found

    def _replace(self, old: Invitation, **changes: object) -> Invitation:
        new = old.model_copy(update=changes)
        self._write(tuple(new if i == old else i for i in self._read().invitations))
        return new

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self._path.with_suffix(".lock"))

    def _read(self) -> _File:
        if not exists(self._path):
            return _File()
        content = read_json(self._path, max_bytes=_MAX_BYTES)
        if not isinstance(content, dict):
            raise InvalidInput(f"{self._path.name} must be a JSON object, got another value")
        return parse(_File, content, self._path.name)

    def _write(self, invitations: tuple[Invitation, ...]) -> None:
        data = _File(invitations=invitations).model_dump(mode="json")
        write_file(self._path, (json.dumps(data, indent=1) + "\n").encode())


def _hash(secret: bytes) -> str:
    return hashlib.sha256(b"veiltune invitation\n" + secret).hexdigest()
