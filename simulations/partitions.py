"""Dealing one data set out to simulated sites, always whole privacy units.

``natural`` keeps the groups that the data has, ``dirichlet:ALPHA`` skews the labels of sites (Hsu
et al. 2019, https://arxiv.org/abs/1909.06335, by unit instead of by record), ``quantity:ALPHA``
skews their sizes and leaves labels as they fall (Li et al. 2022, https://arxiv.org/abs/2102.02079,
with every site given one unit first), ``shards:K`` gives
each site K pieces of the data sorted by label (McMahan et al. 2017,
https://arxiv.org/abs/1602.05629), ``iid`` does none of it. Each is decided by the seed alone.

Not covered: sites that share a person; whoever wants that gives two units.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from string import ascii_uppercase

import numpy as np

from common.data.records import Record
from common.errors import InvalidInput

_REDRAWS = 100
MAX_SITES = 4096  # what the ``scale`` benchmark tries; a real job has at most 3,000

Unit = list[Record]


def site_names(count: int) -> tuple[str, ...]:
    """A, B, ... Z, then S27, S28 and so on.

    >>> site_names(3)
    ('A', 'B', 'C')
    """
    return tuple(ascii_uppercase[i] if i < 26 else f"S{i + 1}" for i in range(count))


def partition(
    records: Sequence[Record], how: str, sites: int | Sequence[str], seed: int
) -> dict[str, list[Record]]:
    """Deal records out to sites.

    Guarantee: each record goes to exactly one site, records of a unit go together, every site has
    at least one record, and order within a site is that of ``records``.

    Args:
        records: with ``unit`` set where records belong together, and ``group`` for natural.
        how: natural, iid, dirichlet:ALPHA or quantity:ALPHA with ALPHA > 0 (small is skewed), or
            shards:K.
        sites: their names, or how many (named A, B, ...).
        seed: of the draw; natural draws nothing.

    Returns:
        Records by site, in the order of ``sites``.

    Raises:
        InvalidInput: an unknown scheme, more sites than units or groups, a unit in two groups,
            or labels so skewed that a site stayed empty in every draw.
    """
    names = site_names(sites) if isinstance(sites, int) else tuple(sites)
    if not 1 <= len(names) <= MAX_SITES or len(set(names)) != len(names):
        raise InvalidInput(f"sites must be 1 to {MAX_SITES} distinct names, got {len(names)}")
    if seed < 0:
        raise InvalidInput(f"seed must be at least 0, got {seed}")
    deal = _scheme(how)
    units = _units(records)
    if len(units) < len(names):
        raise InvalidInput(
            f"sites must be at most the {len(units)} privacy units of the data, got {len(names)}"
        )
    owners = deal([[records[i] for i in unit] for unit in units], len(names), seed)
    owner_of = {i: site for unit, site in zip(units, owners, strict=True) for i in unit}
    dealt: dict[str, list[Record]] = {name: [] for name in names}
    for i, record in enumerate(records):
        dealt[names[owner_of[i]]].append(record)
    return dealt


def _scheme(how: str) -> Callable[[list[Unit], int, int], list[int]]:
    """The dealing function: units, number of sites and seed to a site's index for each unit."""
    if how == "natural":
        return lambda units, sites, seed: _natural(units, sites)
    if how == "iid":
        return _iid
    name, _, number = how.partition(":")
    if name == "shards" and number.isdecimal() and 1 <= len(number) <= 4 and int(number) > 0:
        each = int(number)
        return lambda units, sites, seed: _shards(units, sites, seed, each)
    skewed = {"dirichlet": _dirichlet, "quantity": _quantity}.get(name)
    try:
        alpha = float(number) if skewed else 0.0
    except ValueError:
        alpha = 0.0
    if skewed is None or not 0 < alpha <= 1e6:
        raise InvalidInput(
            "partition must be natural, iid, dirichlet:ALPHA or quantity:ALPHA with ALPHA above 0 "
            f"or shards:K with K from 1 to 9999, got {how!r}"
        )
    return lambda units, sites, seed: skewed(units, sites, seed, alpha)


def _units(records: Iterable[Record]) -> list[list[int]]:
    """Positions of each unit's records; a record without a unit stands alone."""
    units: dict[tuple[str, int], list[int]] = {}
    for i, record in enumerate(records):
        units.setdefault((record.unit, -1 if record.unit else i), []).append(i)
    return list(units.values())


def _natural(units: list[Unit], sites: int) -> list[int]:
    """One group a site; with more groups than sites, the smallest site takes the next group."""
    groups: Counter[str] = Counter()
    for unit in units:
        found = {record.group for record in unit}
        if len(found) != 1 or "" in found:
            fault = "without a group" if "" in found else f"in {len(found)} groups"
            raise InvalidInput(f"every unit must lie in one group for natural, got one {fault}")
        groups[unit[0].group] += len(unit)
    if len(groups) < sites:
        raise InvalidInput(
            f"sites must be at most the {len(groups)} groups of the data, got {sites}"
        )
    if len(groups) == sites:
        order = {group: site for site, group in enumerate(sorted(groups))}
        return [order[unit[0].group] for unit in units]
    sizes, order = [0] * sites, {}
    for group, size in sorted(groups.items(), key=lambda item: (-item[1], item[0])):
        order[group] = sizes.index(min(sizes))
        sizes[order[group]] += size
    return [order[unit[0].group] for unit in units]


def _iid(units: list[Unit], sites: int, seed: int) -> list[int]:
    """Units in random order, dealt round: sites differ by one unit at most."""
    owners = [0] * len(units)
    for turn, unit in enumerate(np.random.default_rng(seed).permutation(len(units)).tolist()):
        owners[unit] = turn % sites
    return owners


def _dirichlet(units: list[Unit], sites: int, seed: int, alpha: float) -> list[int]:
    """Each label has its own shares of sites; a unit counts as its most frequent label."""
    rng = np.random.default_rng(seed)
    labels = [_main_label(unit) for unit in units]
    for _ in range(_REDRAWS):
        owners = [0] * len(units)
        for label in sorted(set(labels)):
            mine = [i for i, found in enumerate(labels) if found == label]
            shares = rng.dirichlet([alpha] * sites)
            ends = np.floor(np.cumsum(shares) * len(mine)).astype(int)
            for place, i in enumerate(rng.permutation(len(mine)).tolist()):
                site = int(np.searchsorted(ends, place, side="right"))
                owners[mine[i]] = min(site, sites - 1)  # rounding may leave the last place over
        if len(set(owners)) == sites:
            return owners
    raise InvalidInput(
        f"dirichlet:{alpha:g} must leave no site empty, got an empty one in {_REDRAWS} draws: "
        "take a larger ALPHA or fewer sites"
    )


def _quantity(units: list[Unit], sites: int, seed: int, alpha: float) -> list[int]:
    """Sizes by one draw of shares; each site has a unit before the rest is dealt."""
    rng = np.random.default_rng(seed)
    order, rest = rng.permutation(len(units)).tolist(), len(units) - sites
    ends = np.floor(np.cumsum(rng.dirichlet([alpha] * sites)) * rest).astype(int)
    owners = [0] * len(units)
    for place, unit in enumerate(order):
        site = place if place < sites else int(np.searchsorted(ends, place - sites, side="right"))
        owners[unit] = min(site, sites - 1)  # rounding may leave the last place over
    return owners


def _shards(units: list[Unit], sites: int, seed: int, each: int) -> list[int]:
    """Units sorted by label, cut into ``sites * each`` shards that are dealt out at random.

    Units of one label are in random order; shards differ by one unit at most.
    """
    count = sites * each
    if len(units) < count:
        raise InvalidInput(
            f"shards:{each} must cut the data's {len(units)} privacy units into {count} shards, "
            "got more shards than units"
        )
    rng = np.random.default_rng(seed)
    labels = [_main_label(unit) for unit in units]
    order = sorted(rng.permutation(len(units)).tolist(), key=lambda unit: labels[unit])
    dealt = rng.permutation(count)
    owners = [0] * len(units)
    for shard, members in enumerate(np.array_split(order, count)):
        for unit in members.tolist():
            owners[unit] = int(dealt[shard]) // each
    return owners


def _main_label(unit: Unit) -> str:
    """The most frequent label or kind of entity, the first in the alphabet among equals."""
    counts = Counter(record.topic() for record in unit)
    return min(counts, key=lambda label: (-counts[label], label))
