"""No allowance outlives its reason: what pyproject.toml and the house's rules permit is made use of."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tests.house.test_rules import ONLY_IN, PACKAGE, ROOT, SOURCES, name_of

TOOL = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
LINT = TOOL["ruff"]["lint"]
FORMATTER = {"COM812", "ISC001"}  # never enforced beside the formatter, whatever they would find


@cache
def complaints(*options: str) -> list[tuple[str, str]]:
    """(file, rule) of everything that ruff says with these options."""
    ruff = [str(Path(sys.executable).with_name("ruff")), "check", "--exit-zero", "--output-format", "json", "--quiet"]
    output = subprocess.run([*ruff, *options, "."], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [(Path(one["filename"]).relative_to(ROOT).as_posix(), one["code"] or "") for one in json.loads(output)]


@pytest.mark.parametrize("rule", sorted(set(LINT["ignore"]) - FORMATTER))
def test_a_rule_that_is_ignored_would_find_something(rule: str) -> None:
    rules = ",".join(sorted(set(LINT["ignore"]) - FORMATTER))
    found = complaints(
        "--isolated", "--preview", "--line-length", "120", "--target-version", "py311", "--select", rules
    )
    assert any(code.startswith(rule) for _, code in found)


@pytest.mark.parametrize(
    ("pattern", "rule"), [(pattern, rule) for pattern, rules in LINT["per-file-ignores"].items() for rule in rules]
)
def test_a_rule_that_some_files_need_not_keep_is_broken_there(pattern: str, rule: str) -> None:
    found = complaints("--config", "lint.per-file-ignores={}")
    assert any(fnmatch(name, pattern) and code.startswith(rule) for name, code in found)


def test_every_library_without_types_is_imported() -> None:
    (override,) = TOOL["mypy"]["overrides"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    unused = [
        name
        for name in override["module"]
        if not re.search(rf"^\s*(?:from|import) {re.escape(name.removesuffix('.*'))}\b", text, re.MULTILINE)
    ]
    assert unused == []


@pytest.mark.parametrize(
    ("pattern", "place"), [(pattern, place) for pattern, places in ONLY_IN.items() for place in places]
)
def test_what_only_one_package_may_do_is_done_there(pattern: str, place: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in SOURCES if name_of(path).startswith(place)]
    assert any(re.search(pattern, text, re.MULTILINE) for text in texts), place


def test_every_module_is_in_a_layer() -> None:
    (layers,) = (one for one in TOOL["importlinter"]["contracts"] if one.get("containers") == ["chatsvc"])
    named = {name.strip() for layer in layers["layers"] for name in layer.split("|")}
    there = {
        path.stem if path.is_file() else path.name
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or path.is_dir()
    }
    assert named == there - {"__init__", "__pycache__"}
    assert layers["exhaustive"] is True
