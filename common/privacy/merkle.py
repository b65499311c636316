"""Merkle trees over a growing list: a short root that vouches for all of it, and short proofs.

Source: RFC 9162 section 2.1 (Laurie, Messeri and Stradling, 2021), SHA-256. All functions but
``leaf_hash`` take and give 32-byte hashes; ``leaves`` are the leaf hashes, oldest first.

Not covered: who vouches for a root (common/privacy/ledger.py signs it).
"""

import hashlib
from collections.abc import Sequence

EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry; the 0x00 keeps it from being taken for an inner node."""
    return hashlib.sha256(b"\x00" + entry).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over ``leaves``; that of none is the hash of nothing."""
    return _levels(leaves)[-1][0] if leaves else EMPTY_ROOT


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that lead from the leaf at ``index`` to the root, lowest first.

    Raises:
        IndexError: there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(index)
    return _climb(_levels(leaves), 0, index)


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """The hashes which show that the tree of the first ``old_size`` leaves is a beginning of this.

    Raises:
        IndexError: ``old_size`` is not within 1 and the number of leaves.
    """
    if not 1 <= old_size <= len(leaves):
        raise IndexError(old_size)
    if old_size == len(leaves):
        return []
    levels, level, index = _levels(leaves), 0, old_size - 1
    while index % 2:  # up to the last whole subtree of the old tree
        level, index = level + 1, index // 2
    # An old tree of a power of two is that subtree, and its root is known already.
    known = [levels[level][index]] if index else []
    return known + _climb(levels, level, index)


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether ``proof`` shows ``leaf`` at ``index`` of a tree of ``size`` (section 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    first, last, found = index, size - 1, leaf
    for other in proof:
        if not last:
            return False
        if first % 2 or first == last:
            found = _node(other, found)
            while first and not first % 2:
                first, last = first // 2, last // 2
        else:
            found = _node(found, other)
        first, last = first // 2, last // 2
    return not last and found == root


def is_consistent(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether ``proof`` shows that the old tree begins the new one (section 2.1.4.2)."""
    if not 1 <= old_size <= new_size:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    path = list(proof)
    if not old_size & (old_size - 1):
        path.insert(0, old_root)
    if not path:
        return False
    first, last = old_size - 1, new_size - 1
    while first % 2:
        first, last = first // 2, last // 2
    old = new = path[0]
    for other in path[1:]:
        if not last:
            return False
        if first % 2 or first == last:
            old, new = _node(other, old), _node(other, new)
            while first and not first % 2:
                first, last = first // 2, last // 2
        else:
            new = _node(new, other)
        first, last = first // 2, last // 2
    return not last and (old, new) == (old_root, new_root)


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """All nodes, leaves first; a last node without a sibling goes up as it is."""
    levels = [list(leaves)]
    while len(below := levels[-1]) > 1:
        above = [_node(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
        levels.append(above + below[len(below) - len(below) % 2 :])
    return levels


def _climb(levels: list[list[bytes]], level: int, index: int) -> list[bytes]:
    """The siblings on the way up from one node."""
    path = []
    for nodes in levels[level:]:
        if (sibling := index ^ 1) < len(nodes):
            path.append(nodes[sibling])
        index //= 2
    return path
