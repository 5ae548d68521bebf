"""docs/reference/audit-format.md is enough: a verifier that imports nothing of ours comes to the same verdicts."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from chatsvc.audit import keys
from chatsvc.audit.format import layout
from chatsvc.audit.verify.log import verify_log
from chatsvc.audit.verify.prune import prune
from chatsvc.audit.verify.verdict import CLEAN, TAMPERED
from tests.audit import independent_verifier
from tests.audit.logs import DAY_US, home_trust, last_segment, write_segments, write_some

SOURCE = Path(independent_verifier.__file__)


def independent_code(options, seal_key=None) -> int:
    try:
        independent_verifier.Log(options.directory, seal_key).verify()
    except independent_verifier.Bad as error:
        return error.args[0]
    return 0


def test_it_imports_nothing_of_ours_and_is_short():
    text = SOURCE.read_text()
    names = [alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.startswith(("chatsvc", "tests"))]
    assert len(text.splitlines()) < 170


def test_it_verifies_segments_epochs_seals_and_a_pruned_log(options, time):
    write_segments(options, time, 4, days_between=60)
    (seal_path,) = keys.initial_seals(options.keys)
    assert independent_code(options, seal_path.read_text()) == 0
    assert prune(options.directory, options.keys, 180, time.wall_us) is not None
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN
    assert independent_code(options, seal_path.read_text()) == 0


def test_it_finds_the_same_flips(options, time):
    write_some(options, time, 2)
    segment = last_segment(options)
    data = segment.read_bytes()
    for place in range(0, len(data), 29):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        segment.write_bytes(changed)
        assert independent_code(options) == TAMPERED, place


def test_it_gives_the_same_exit_codes(options, time):
    write_some(options, time, 2)
    segment = last_segment(options)
    data = segment.read_bytes()
    for change in (data[:-5], data[: data.rindex(b"\n{") + 1], data + b'{"torn', data):
        segment.write_bytes(change)
        assert independent_code(options) == verify_log(options.directory, home_trust(options)).exit_code
    notes = layout.checkpoints_of(segment)
    notes.write_text(notes.read_text().replace("— chatsvc.local", "— elsewhere"))
    assert independent_code(options) == verify_log(options.directory, home_trust(options)).exit_code == 6


def test_it_finds_a_wrong_seal(options, time):
    long = replace(options, segment_age_s=10**9)
    write_some(long, time, 1)
    time.pass_us(DAY_US)
    write_some(long, time, 1)
    (seal_path,) = keys.initial_seals(options.keys)
    text = seal_path.read_text()
    assert independent_code(options, text) == 0
    assert independent_code(options, text[:-2] + ("0" if text[-2] != "0" else "1") + "\n") == TAMPERED


def test_it_runs_alone(small_log):
    done = subprocess.run(
        [sys.executable, "-I", SOURCE, small_log.directory], capture_output=True, text=True, check=True
    )
    assert done.stdout == "9 records, clean\n"
    segment = last_segment(small_log)
    assert json.loads(segment.read_bytes().splitlines()[0])["seq"] == 0
    segment.write_bytes(segment.read_bytes().replace(b"alice", b"alicf"))
    assert subprocess.run([sys.executable, "-I", SOURCE, small_log.directory], check=False).returncode == TAMPERED
