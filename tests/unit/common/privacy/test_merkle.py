"""Oracles: the test vectors of RFC 6962's authors, and the RFC's recursive definitions."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.privacy import merkle

# certificate-transparency, src/merkletree: the leaves' data, and the root over the first n.
ENTRIES = [
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]  # fmt: skip
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaves(count: int) -> list[bytes]:
    return [merkle.leaf_hash(b"entry %d" % n) for n in range(count)]


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def half(count: int) -> int:
    """The largest power of two below ``count``."""
    return 1 << ((count - 1).bit_length() - 1)


def tree_hash(hashes: list[bytes]) -> bytes:
    """MTH of RFC 9162 section 2.1.1."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = half(len(hashes))
    return node(tree_hash(hashes[:k]), tree_hash(hashes[k:]))


def path(m: int, hashes: list[bytes]) -> list[bytes]:
    """PATH of section 2.1.3.1."""
    if len(hashes) == 1:
        return []
    k = half(len(hashes))
    if m < k:
        return [*path(m, hashes[:k]), tree_hash(hashes[k:])]
    return [*path(m - k, hashes[k:]), tree_hash(hashes[:k])]


def subproof(m: int, hashes: list[bytes], *, is_known: bool) -> list[bytes]:
    """SUBPROOF of section 2.1.4.1."""
    n = len(hashes)
    if m == n:
        return [] if is_known else [tree_hash(hashes)]
    k = half(n)
    if m <= k:
        return [*subproof(m, hashes[:k], is_known=is_known), tree_hash(hashes[k:])]
    return [*subproof(m - k, hashes[k:], is_known=False), tree_hash(hashes[:k])]


@pytest.mark.parametrize("count", range(9))
def test_roots_are_those_of_the_published_vectors(count: int) -> None:
    hashes = [merkle.leaf_hash(bytes.fromhex(data)) for data in ENTRIES[:count]]
    assert merkle.root(hashes).hex() == ROOTS[count]


def test_a_published_inclusion_path_is_the_one_made() -> None:
    hashes = [merkle.leaf_hash(bytes.fromhex(data)) for data in ENTRIES]
    assert [found.hex() for found in merkle.inclusion_proof(hashes, 5)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


def test_every_small_tree_agrees_with_the_recursive_definition() -> None:
    for count in range(1, 34):
        hashes = leaves(count)
        assert merkle.root(hashes) == tree_hash(hashes)
        for index in range(count):
            assert merkle.inclusion_proof(hashes, index) == path(index, hashes)
            proof = subproof(index + 1, hashes, is_known=True)
            assert merkle.consistency_proof(hashes, index + 1) == proof


def test_every_proof_of_a_small_tree_is_taken() -> None:
    for count in range(1, 34):
        hashes = leaves(count)
        root = tree_hash(hashes)
        for index in range(count):
            proof = path(index, hashes)
            assert merkle.is_included(hashes[index], index, count, proof, root)
            old = tree_hash(hashes[: index + 1])
            proof = subproof(index + 1, hashes, is_known=True)
            assert merkle.is_consistent(index + 1, old, count, root, proof)


@given(st.data(), st.integers(2, 70))
def test_no_other_leaf_place_size_or_hash_passes_as_included(data: st.DataObject, n: int) -> None:
    hashes = leaves(n)
    index = data.draw(st.integers(0, n - 1))
    root, proof = tree_hash(hashes), path(index, hashes)
    leaf = hashes[index]
    other = data.draw(st.integers(-1, n + 1).filter(lambda i: i != index))
    assert not merkle.is_included(leaf, other, n, proof, root)
    assert not merkle.is_included(merkle.leaf_hash(b"other"), index, n, proof, root)
    assert not merkle.is_included(leaf, index, n, proof[:-1], root)
    assert not merkle.is_included(leaf, index, n, [*proof, leaf], root)
    place = data.draw(st.integers(0, len(proof) - 1))
    changed = [bytes(32) if i == place else h for i, h in enumerate(proof)]
    assert not merkle.is_included(leaf, index, n, changed, root)


@given(st.data(), st.integers(2, 70))
def test_no_other_old_tree_passes_as_its_beginning(data: st.DataObject, n: int) -> None:
    hashes = leaves(n)
    m = data.draw(st.integers(1, n - 1))
    old, new = tree_hash(hashes[:m]), tree_hash(hashes)
    proof = subproof(m, hashes, is_known=True)
    place = data.draw(st.integers(0, m - 1))
    rewritten = [merkle.leaf_hash(b"other") if i == place else h for i, h in enumerate(hashes)]
    assert not merkle.is_consistent(m, tree_hash(rewritten[:m]), n, new, proof)
    assert not merkle.is_consistent(m, old, n, tree_hash(rewritten), proof)
    honest = subproof(m, rewritten, is_known=True)
    assert not merkle.is_consistent(m, old, n, tree_hash(rewritten), honest)
    assert not merkle.is_consistent(m, old, n, new, proof[:-1])
    assert not merkle.is_consistent(m, old, n, new, [])
    assert not merkle.is_consistent(m, old, n, new, [*proof, old])
    assert not merkle.is_consistent(n, new, m, old, proof)
    assert not merkle.is_consistent(0, merkle.EMPTY_ROOT, n, new, [])


def test_a_tree_is_consistent_with_itself_alone() -> None:
    root = tree_hash(leaves(5))
    assert merkle.is_consistent(5, root, 5, root, [])
    assert not merkle.is_consistent(5, bytes(32), 5, root, [])
    assert not merkle.is_consistent(5, root, 5, root, [root])


@pytest.mark.parametrize("index", [-1, 4])
def test_a_proof_about_what_is_not_there_is_refused(index: int) -> None:
    with pytest.raises(IndexError):
        merkle.inclusion_proof(leaves(4), index)
    with pytest.raises(IndexError):
        merkle.consistency_proof(leaves(4), index + 1)
