"""Keeps results in docs/bench and writes their tables into docs/explanation/performance.md, between named marks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import machine

FOLDER = Path("docs/bench")
_PAGE = Path("docs/explanation/performance.md")


def save(name: str, result: Mapping[str, Any], table: str) -> None:
    """``<name>.json`` with the machine, and the table into the page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    head = machine.describe([*sys.orig_argv]) | {"load_after": machine.load_average()}
    content = {"machine": head, **result}
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    embed(name, table)


def embed(name: str, table: str, page: Path = _PAGE) -> None:
    """Replace what stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    between = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)", re.DOTALL)
    replaced, count = between.subn(lambda found: f"{found[1]}\n{table.strip()}\n\n{found[2]}", text)
    if not count:
        raise ValueError(f"{page} has no place for {name}")
    page.write_text(replaced, encoding="utf-8")
