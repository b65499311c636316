"""Certificates on disk: are they in their time, and what their dates say of this machine's clock.

Not covered: whether a root vouches for them (common/certificates.py), revocation.
"""

import datetime as dt
from collections.abc import Iterator, Mapping

from cryptography import x509

from common.diagnosis import Finding, fault, ok, warning
from common.words import counted

CLOCK = "set this machine's clock (timedatectl status) if it is wrong, or wait until then"


def closes_soon(certificate: x509.Certificate, soon_days: int, now: dt.datetime) -> bool:
    """Whether it ends within ``soon_days``, or within the last quarter of its life if that is less.

    So a short-lived one that is renewed in time is never called late.
    """
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (end - now).days < min(soon_days, (end - start).days / 4)


def in_time(
    check: str,
    certificates: Mapping[str, x509.Certificate],
    renew: str | Mapping[str, str],
    *,
    soon_days: int,
    now: dt.datetime | None = None,
) -> Iterator[Finding]:
    """A line for each certificate out of its time or close to its end, or one for all.

    Args:
        check: the line's name.
        certificates: by what a person calls them.
        renew: what to do about one that has expired or soon will; or that by its name.
        soon_days: how close its end is close, see ``closes_soon``.
        now: the moment to check at.
    """
    moment, found = now or dt.datetime.now(dt.UTC), list[Finding]()
    for name, certificate in certificates.items():
        advice = renew if isinstance(renew, str) else renew[name]
        line = _out_of_time(check, name, certificate, advice, soon_days, moment)
        found += [] if line is None else [line]
    yield from found
    if not found:
        first, end = min(
            ((name, c.not_valid_after_utc) for name, c in certificates.items()), key=lambda e: e[1]
        )
        left = counted((end - moment).days, "day")
        yield ok(check, f"valid for {left}, until {end:%Y-%m-%d} ({first})")


def _out_of_time(
    check: str,
    name: str,
    certificate: x509.Certificate,
    renew: str,
    soon_days: int,
    moment: dt.datetime,
) -> Finding | None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end < moment:
        ago = counted((moment - end).days, "day")
        found = f"{name} expired on {end:%Y-%m-%d}, {ago} ago by this machine's clock"
        return fault(check, found, renew)
    if start > moment:
        found = f"{name} is not valid before {start:%Y-%m-%d %H:%M} UTC, and it is {moment:%H:%M}"
        return fault(check, f"{found} on {moment:%Y-%m-%d} by this machine's clock", CLOCK)
    if closes_soon(certificate, soon_days, moment):
        left = counted((end - moment).days, "day")
        return warning(check, f"{name} expires in {left}, on {end:%Y-%m-%d}", renew)
    return None
