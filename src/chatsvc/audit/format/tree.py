"""The Merkle tree of RFC 6962: hashes, incremental roots, proofs and their verification.

Pure functions over 32-byte hashes. Knows nothing about records, files or signatures.

A *frontier* is the list of roots of the perfect subtrees that a tree of some size falls into, largest first: all that
is needed to append further leaves and to compute the root at any time. Proof verification follows RFC 9162 2.1.3.2 and
2.1.4.2 (the same trees, the algorithms written out).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from chatsvc.errors import ChatsvcError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


class ProofInvalid(ChatsvcError):
    """A proof does not lead to the root it is given for."""

    code = "proof_invalid"
    message = "The proof does not lead to the root."


def leaf_hash(leaf: bytes) -> bytes:
    """RFC 6962 2.1: SHA-256(0x00 ‖ leaf)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 2.1: SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A growing tree of which only the perfect subtrees' roots are kept."""

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if len(hashes) != size.bit_count() or any(len(each) != HASH_BYTES for each in hashes):
            raise ProofInvalid(f"A tree of {size} leaves has {size.bit_count()} perfect subtrees, not {len(hashes)}.")
        self.size = size
        self.hashes = list(hashes)

    def copy(self) -> Frontier:
        """A copy."""
        return Frontier(self.size, self.hashes)

    def append(self, leaf: bytes) -> None:
        """Add a leaf's hash."""
        self.append_subtree(0, leaf)

    def append_subtree(self, level: int, root: bytes) -> None:
        """Add a perfect subtree of 2**level leaves; it must start where such a subtree can start."""
        if self.size & ((1 << level) - 1):
            raise ProofInvalid(f"No subtree of {1 << level} leaves starts at leaf {self.size}.")
        merges = self.size >> level
        while merges & 1:
            root = node_hash(self.hashes.pop(), root)
            merges >>= 1
        self.hashes.append(root)
        self.size += 1 << level

    def root(self) -> bytes:
        """The tree's root; without leaves, SHA-256 of the empty string."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def _split(size: int) -> int:
    """The largest power of two below ``size`` (at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """RFC 6962 2.1.1: the audit path of leaf ``index``, from the leaf upwards."""
    if not 0 <= index < len(leaves):
        raise ProofInvalid(f"There is no leaf {index} among {len(leaves)}.")
    if len(leaves) == 1:
        return []
    middle = _split(len(leaves))
    if index < middle:
        return [*inclusion_proof(leaves[:middle], index), root_of(leaves[middle:])]
    return [*inclusion_proof(leaves[middle:], index - middle), root_of(leaves[:middle])]


def consistency_proof(leaves: Sequence[bytes], size1: int) -> list[bytes]:
    """RFC 6962 2.1.2: that the first ``size1`` leaves are a prefix of all."""
    if not 0 < size1 <= len(leaves):
        raise ProofInvalid(f"There is no tree of {size1} leaves inside one of {len(leaves)}.")
    return _subproof(leaves, size1, whole=True)


def _subproof(leaves: Sequence[bytes], size1: int, *, whole: bool) -> list[bytes]:
    if size1 == len(leaves):
        return [] if whole else [root_of(leaves)]
    middle = _split(len(leaves))
    if size1 <= middle:
        return [*_subproof(leaves[:middle], size1, whole=whole), root_of(leaves[middle:])]
    return [*_subproof(leaves[middle:], size1 - middle, whole=False), root_of(leaves[:middle])]


def extension_proof(old: Frontier, leaves: Sequence[bytes]) -> list[bytes]:
    """The consistency proof from ``old`` to ``old`` and these leaves, without the leaves before ``old``."""
    if not old.size:
        raise ProofInvalid("Nothing can be shown from an empty tree.")
    roots, start = {}, 0
    for level, root in zip(cover(0, old.size), old.hashes, strict=True):
        roots[start] = root
        start += 1 << level

    def subproof(start: int, size: int, *, whole: bool) -> list[bytes]:
        """RFC 6962 2.1.2 of the leaves from ``start`` on: the same steps as :func:`consistency_proof`."""
        num_old = old.size - start
        if num_old == size:
            return [] if whole else [roots[start]]
        middle = _split(size)
        if num_old <= middle:
            first = start + middle - old.size
            return [*subproof(start, middle, whole=whole), root_of(leaves[first : first + size - middle])]
        return [*subproof(start + middle, size - middle, whole=False), roots[start]]

    return subproof(0, old.size + len(leaves), whole=True)


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162 2.1.3.2.

    Raises:
        ProofInvalid: the leaf is not shown to be at ``index`` of the tree of ``size`` with this root.
    """
    if not 0 <= index < size or not _are_hashes(leaf, root, *proof):
        raise ProofInvalid
    node, last, result = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofInvalid
        if node & 1 or node == last:
            result = node_hash(sibling, result)
            node, last = _rise(node, last)
        else:
            result = node_hash(result, sibling)
        node, last = node >> 1, last >> 1
    if last or result != root:
        raise ProofInvalid


def _are_hashes(*values: bytes) -> bool:
    return all(len(each) == HASH_BYTES for each in values)


def _rise(node: int, last: int) -> tuple[int, int]:
    """Up to where the node is a right child: on the right edge there is no sibling at the levels between."""
    while not node & 1 and node:
        node, last = node >> 1, last >> 1
    return node, last


def verify_consistency(size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes) -> None:
    """RFC 9162 2.1.4.2. Nothing can be shown from an empty tree, so ``size1`` 0 is refused.

    Raises:
        ProofInvalid: the tree of ``size1`` is not shown to be a prefix of the tree of ``size2``.
    """
    if not 0 < size1 <= size2 or not _are_hashes(*proof):
        raise ProofInvalid
    if size1 == size2 and (proof or root1 != root2):
        raise ProofInvalid
    if size1 == size2:
        return
    path = list(proof) if size1 & (size1 - 1) else [root1, *proof]
    if not path:
        raise ProofInvalid
    node, last = size1 - 1, size2 - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofInvalid
        if node & 1 or node == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            node, last = _rise(node, last)
        else:
            second = node_hash(second, sibling)
        node, last = node >> 1, last >> 1
    if last or first != root1 or second != root2:
        raise ProofInvalid


def cover(first: int, end: int) -> list[int]:
    """The levels of the perfect subtrees that cover leaves ``first`` to ``end`` (exclusive), in order."""
    levels = []
    while first < end:
        aligned = (first & -first).bit_length() - 1 if first else end.bit_length()
        level = min(aligned, (end - first).bit_length() - 1)
        levels.append(level)
        first += 1 << level
    return levels
