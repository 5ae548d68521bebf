"""Documents name only files, headings and commands' documents that are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# A document of ours that is named by its path; docs/gguf.md is a page of ggml.
NAMED = re.compile(r"(?<![\w/.-])docs/(?!gguf)[\w./-]*\.(?:md|svg|png|json)\b")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def tracked() -> list[Path]:
    output = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in output.split("\0") if name and (ROOT / name).is_file()]


DOCUMENTS = [path for path in tracked() if path.suffix == ".md"]


def anchors(path: Path) -> set[str]:
    """The fragment that GitHub gives to each heading of a document."""
    headings = re.findall(r"^#+ +(.+?)\s*$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def dead_links(path: Path) -> list[str]:
    dead = []
    for target in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        name, _, fragment = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if re.match(r"[a-z]+:", target):
            continue
        if not file.exists() or (fragment and fragment not in anchors(file)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_link_is_dead(path: Path) -> None:
    assert dead_links(path) == []


def test_a_dead_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](gone.md) [c](#three) [d](https://example.org)\n", encoding="utf-8")
    assert dead_links(page) == ["gone.md", "#three"]


def test_every_document_that_is_named_is_there() -> None:
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in tracked()
        if path.name != "CHANGELOG.md" and path.suffix in {".py", ".toml", ".conf", ".md", ".service", ".yaml", ".sh"}
        for name in NAMED.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    ]
    assert missing == []


def test_every_document_is_reached_from_the_index() -> None:
    pages = {path for path in DOCUMENTS if path.is_relative_to(ROOT / "docs")}
    reached, waiting = set(), [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page not in pages:
            continue
        reached.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8")))
        waiting += [(page.parent / link).resolve() for link in links if not re.match(r"[a-z]+:", link)]
    assert pages - reached == set()


def test_every_file_of_the_code_that_a_document_names_is_there() -> None:
    native = ROOT / "src" / "chatsvc" / "engine" / "runners" / "native"
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in DOCUMENTS
        if path.name != "CHANGELOG.md"
        for name in re.findall(
            r"`((?!var/)(?:[\w.]+/)+[\w.]+\.(?:py|c|h|js|toml|service|conf))`", path.read_text(encoding="utf-8")
        )
        if not any((folder / name).exists() for folder in (ROOT, ROOT / "src" / "chatsvc", native, ROOT / "src"))
    ]
    assert missing == []
