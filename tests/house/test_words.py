"""One word, one meaning: the words that the house does not use are in no name of a module, class or function."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.test_rules import SOURCES, name_of, tree_of

# A word that is not used, what is said instead, and where the word is right.
UNWANTED = {
    "room": ("queue, or capacity", ()),
    "place": ("queue, slot, position or network", ()),
    "checkpoint": ("weight files; a checkpoint is one of the audit log", ("audit/",)),
    "entry": ("record, in the audit log", ("guard/", "models/")),
    "event": (
        "record; an event is a stage of one, or a piece of a stream",
        ("audit/log.py", "chat/types.py", "cli/", "http/"),
    ),
    "query": ("message, or prompt; a query is a URL's", ("http/",)),
    "row": (
        "sequence, or account; a row is a matrix's, or a database's",
        ("engine/runners/", "guard/", "models/formats/"),
    ),
    "tick": ("step", ()),
    "cred": ("credential", ()),
    "ip": ("peer, or client address", ()),
    "remote": ("peer, or client address", ()),
    "plugin": ("tool", ()),
    "corpus": ("collection", ()),
    "passage": ("chunk", ()),
    "utterance": ("segment", ()),
    "blob": ("bundle, or weights", ()),
    "pack": ("bundle", ()),
    "task": ("sequence, generation or job; a task is what a model is for, or the kernel's", ("supervisor/cgroup.py",)),
    "job": ("sequence, or generation; a job is durable work outside a request", ("jobs/", "speech/")),
    "eos": ("stop, or finish reason; eos is a token", ("models/",)),
    "role": (
        "scope; a role is a named set of them, or a message's author",
        ("cli/", "guard/", "http/api/", "settings/"),
    ),
    "chunk": (
        "delta; a chunk is a part of a prompt, a document or an HTTP body",
        ("engine/runners/", "http/", "knowledge/"),
    ),
    "stranger": ("a caller without a token", ()),
    "nobody": ("what there is instead", ()),
    "book": ("counts", ()),
    "desk": ("what it holds", ()),
    "door": ("what it checks", ()),
}
# The same of whole names.
UNWANTED_NAMES = {"check_auth", "ip_address_of", "remote_addr", "user_id"}


def words_of(name: str) -> set[str]:
    """``HTTPServer_of2`` -> http, server, of; a plural counts as its singular."""
    found = [word.lower() for word in re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", name)]
    return {
        *found,
        *(word.removesuffix("s") for word in found),
        *(f"{word[:-3]}y" for word in found if word.endswith("ies")),
    }


def names() -> Iterator[tuple[str, str]]:
    """(module, name) of every module, class and function."""
    for path in SOURCES:
        module = name_of(path)
        if "store/migrations/versions" in module:  # what has run somewhere stays as it is
            continue
        for part in (*path.relative_to(path.parents[len(module.split("/")) - 1]).parts[:-1], path.stem):
            yield module, part
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield module, node.name


NAMES = sorted(set(names()))


@pytest.mark.parametrize("word", UNWANTED)
def test_a_word_that_the_house_does_not_use_is_in_no_name(word: str) -> None:
    instead, allowed = UNWANTED[word]
    found = [
        f"{module}: {name}"
        for module, name in NAMES
        if word in words_of(name) and not module.startswith(allowed or ("-",))
    ]
    assert found == [], f"say {instead}"


@pytest.mark.parametrize(
    ("word", "where"), [(word, where) for word, (_, places) in UNWANTED.items() for where in places]
)
def test_where_a_word_is_allowed_it_is_used(word: str, where: str) -> None:
    if any(module.startswith(where) for module, _ in NAMES):
        assert any(word in words_of(name) for module, name in NAMES if module.startswith(where))


def test_no_name_is_one_that_the_house_does_not_use() -> None:
    assert [f"{module}: {name}" for module, name in NAMES if name in UNWANTED_NAMES] == []
