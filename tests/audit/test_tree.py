"""RFC 6962: against the public vectors, and against itself on every small tree."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

from chatsvc.audit.format.tree import (
    EMPTY_ROOT,
    Frontier,
    ProofInvalid,
    consistency_proof,
    cover,
    extension_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from tests.audit.logs import vectors

LEAVES = [leaf_hash(bytes([number])) for number in range(33)]


def is_refused(check, *arguments) -> bool:
    try:
        check(*arguments)
    except ProofInvalid:
        return True
    return False


def test_every_public_vector_gives_its_stated_result():
    lines = (vectors() / "merkle-proofs.jsonl").read_text().splitlines()
    wrong = []
    for line in lines:
        case = json.loads(line)
        proof = [base64.b64decode(each) for each in case["proof"] or []]
        if case["kind"] == "inclusion":
            leaf, root = (base64.b64decode(case[name]) for name in ("leafHash", "root"))
            refused = is_refused(verify_inclusion, case["leafIdx"], case["treeSize"], leaf, proof, root)
        else:
            roots = [base64.b64decode(case[name] or "") for name in ("root1", "root2")]
            refused = is_refused(verify_consistency, case["size1"], case["size2"], proof, *roots)
        if refused is not case["wantErr"]:
            wrong.append(case["case"])
    assert (len(lines), wrong) == (196, [])


def test_hashes_are_those_of_the_rfc():
    assert hashlib.sha256(b"").digest() == EMPTY_ROOT == root_of([])
    assert leaf_hash(b"a") == hashlib.sha256(b"\x00a").digest()
    assert node_hash(b"l" * 32, b"r" * 32) == hashlib.sha256(b"\x01" + b"l" * 32 + b"r" * 32).digest()


def test_a_proof_from_the_frontier_is_the_proof_from_all_leaves():
    frontier = Frontier()
    for size in range(1, len(LEAVES) + 1):
        frontier.append(LEAVES[size - 1])
        for longer in range(size, len(LEAVES) + 1):
            proof = extension_proof(frontier, LEAVES[size:longer])
            assert proof == consistency_proof(LEAVES[:longer], size), (size, longer)
    assert is_refused(extension_proof, Frontier(), LEAVES)


def naive_root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return node_hash(naive_root(leaves[:middle]), naive_root(leaves[middle:]))


@pytest.mark.parametrize("size", range(1, 34))
def test_the_incremental_root_is_the_definition_of_the_rfc(size):
    assert root_of(LEAVES[:size]) == naive_root(LEAVES[:size])


@pytest.mark.parametrize("size", range(1, 34))
def test_every_leaf_has_a_proof_that_verifies_for_it_alone(size):
    root = root_of(LEAVES[:size])
    for index in range(size):
        proof = inclusion_proof(LEAVES[:size], index)
        verify_inclusion(index, size, LEAVES[index], proof, root)
        assert is_refused(verify_inclusion, index, size, leaf_hash(b"other"), proof, root)
        assert is_refused(verify_inclusion, index, size, LEAVES[index], [*proof, LEAVES[0]], root)
        assert is_refused(verify_inclusion, index + size, size, LEAVES[index], proof, root)


@pytest.mark.parametrize("size", range(1, 34))
def test_every_prefix_has_a_proof_that_verifies_for_it_alone(size):
    root = root_of(LEAVES[:size])
    for first in range(1, size + 1):
        proof = consistency_proof(LEAVES[:size], first)
        verify_consistency(first, size, proof, root_of(LEAVES[:first]), root)
        assert is_refused(verify_consistency, first, size, [*proof, LEAVES[0]], root_of(LEAVES[:first]), root)
        assert is_refused(verify_consistency, first, size, proof, leaf_hash(b"other"), root)
        assert is_refused(verify_consistency, first, size, proof, root_of(LEAVES[:first]), leaf_hash(b"other"))


def test_there_is_no_proof_of_what_is_not_in_the_tree():
    for make, place in ((inclusion_proof, 3), (inclusion_proof, -1), (consistency_proof, 0), (consistency_proof, 4)):
        with pytest.raises(ProofInvalid):
            make(LEAVES[:3], place)


def test_a_frontier_goes_on_from_any_size():
    for size in range(33):
        frontier = Frontier()
        for leaf in LEAVES[:size]:
            frontier.append(leaf)
        again = Frontier(frontier.size, frontier.hashes)
        for leaf in LEAVES[size:]:
            again.append(leaf)
        assert again.root() == root_of(LEAVES)


def test_subtrees_that_cover_a_stretch_lead_to_the_same_root():
    for first in range(34):
        for end in range(first, 34):
            frontier = Frontier()
            for leaf in LEAVES[:first]:
                frontier.append(leaf)
            place = first
            for level in cover(first, end):
                frontier.append_subtree(level, root_of(LEAVES[place : place + (1 << level)]))
                place += 1 << level
            assert (frontier.size, frontier.root()) == (end, root_of(LEAVES[:end]))


def test_a_subtree_does_not_go_where_it_cannot_start():
    frontier = Frontier()
    frontier.append(LEAVES[0])
    with pytest.raises(ProofInvalid, match="starts at leaf 1"):
        frontier.append_subtree(1, LEAVES[1])


def test_a_frontier_with_too_few_hashes_is_refused():
    with pytest.raises(ProofInvalid):
        Frontier(3, [LEAVES[0]])
    with pytest.raises(ProofInvalid):
        Frontier(1, [b"short"])
