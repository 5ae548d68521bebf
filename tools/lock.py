"""Writes requirements.lock and requirements-build.lock: the image's packages with the SHA-256 of every file of each.

What serves (with the extras that a configuration can ask for) and what builds our wheel. `pip install --require-hashes`
takes them. Versions are those of pyproject.toml and constraints.txt; run it (`make lock`) after a change of either.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
SERVING_EXTRAS = ("postgres", "redis", "directory")
_HEADER = "# Made by `make lock`; a test compares it with pyproject.toml and constraints.txt.\n"


def main() -> None:
    """Write both files."""
    extras = [argument for extra in SERVING_EXTRAS for argument in ("--extra", extra)]
    _compile(_ROOT / "pyproject.toml", _ROOT / "requirements.lock", *extras, "--constraint", "constraints.txt")
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    with tempfile.NamedTemporaryFile("w", suffix=".in", encoding="utf-8") as wanted:
        wanted.write("\n".join(project["build-system"]["requires"]))
        wanted.flush()
        _compile(Path(wanted.name), _ROOT / "requirements-build.lock", "--constraint", "constraints.txt")


def _compile(source: Path, target: Path, *more: str) -> None:
    options = [
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        "--universal",
        "--python-version",
        "3.11",
        "--quiet",
    ]
    command = [sys.executable, "-m", "uv", "pip", "compile", str(source), *options, *more]
    result = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True)
    target.write_text(_HEADER + result.stdout, encoding="utf-8")


if __name__ == "__main__":
    main()
