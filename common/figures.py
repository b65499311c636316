"""Numbers as people read them. Bounds round up, because a bound that is rounded down is none."""

import math

NOTHING = "\N{EN DASH}"
_TIMES = "\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def share(value: float | None) -> str:
    """An accuracy or an F1, three places.

    >>> share(0.87349)
    '0.873'
    """
    return NOTHING if value is None else f"{value:.3f}"


def bound(epsilon: float | None) -> str:
    """An epsilon, rounded up to what one can compare.

    >>> bound(2.971), bound(93.11), bound(1873.2), bound(0.0)
    ('2.98', '93.2', '1,874', '0')
    """
    if epsilon is None:
        return "none"
    if not math.isfinite(epsilon):
        return "no bound"
    places = 2 if epsilon < 10 else 1 if epsilon < 100 else 0
    # A hair less, so that 3.0 computed as 3.0000000001 stays 3.
    rounded = math.ceil(epsilon * 10**places - 1e-6) / 10**places
    return f"{rounded:,.{places}f}" if epsilon else "0"


def equation(name: str, value: str) -> str:
    r"""Join a name and its value so that no line breaks between them.

    >>> equation("x", "3").split("\N{NO-BREAK SPACE}")
    ['x', '=', '3']
    """
    return "\N{NO-BREAK SPACE}".join((name, "=", value))


def plain(value: float) -> str:
    """A constant of the job, as short as it can be.

    >>> plain(8.0), plain(0.05), plain(1.23456)
    ('8', '0.05', '1.235')
    """
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def power(value: float | None) -> str:
    """A delta.

    >>> power(1e-5), power(0.01)
    ('10⁻⁵', '0.01')
    """
    if value is None:
        return NOTHING
    if value >= 1e-3:
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    tail = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return tail if mantissa == "1.0" else f"{mantissa.removesuffix('.0')}{_TIMES}{tail}"


def factor(epsilon: float) -> str:
    """``e`` to the ``epsilon``.

    >>> factor(0.5), factor(3), factor(8), factor(93)
    ('1.7', '21', '2,981', '10⁴¹')
    """
    if epsilon > math.log(1e6):
        return "10" + str(math.ceil(epsilon / math.log(10))).translate(_SUPERSCRIPT)
    value = math.exp(epsilon)
    return f"{math.ceil(value * 10) / 10:.1f}" if value < 10 else f"{math.ceil(value):,}"


def size(count: float) -> str:
    """Bytes, in powers of 1000.

    >>> size(512), size(43_500), size(3_400_000)
    ('512 B', '43.5 kB', '3.4 MB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds, as a clock would say them.

    >>> duration(0.0421), duration(9.4), duration(84), duration(7384)
    ('0.042 s', '9.4 s', '1 min 24 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
