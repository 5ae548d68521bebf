"""Numbers in the documents are those of the code, its defaults and docs/bench.

A claim is a piece of a document's text in which the number is put in from the code. Where either changes alone, the text is not
found. Line breaks of a document do not count.
"""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from bench import audit, crowd, gap, kills, logins, memory, prefix, profile, quality, report, sealed, soak
from chatsvc.chat.service import ServiceOptions
from chatsvc.engine.engine_side.loop import LoopOptions
from chatsvc.models.supply.known import SMOLLM2
from chatsvc.observe.metrics import Metrics
from chatsvc.settings.load import Settings, load

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PERFORMANCE = DOCS / "explanation" / "performance.md"
MIB = 1 << 20


def code(name: str) -> Any:
    """A constant of the code: ``guard.accounts.throttle._MAX_WAIT_S``."""
    if name == "collect_ms":
        return round(LoopOptions().collect_s * 1000)
    if name == "wheel of SmolLM2":
        return SMOLLM2.parts[0].requirement
    if name == "MB of SmolLM2":
        return round(SMOLLM2.parts[0].size_bytes / 1e6)
    module, _, constant = name.rpartition(".")
    return getattr(importlib.import_module(f"chatsvc.{module}"), constant)


def text_of(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def defaults(tmp_path_factory):
    return load({"CHATSVC_HOME": str(tmp_path_factory.mktemp("home"))})


def n(value: float) -> str:
    return f"{value:g}"


WORDS = {2: "two", 4: "four", 5: "five", 8: "eight"}

# document, its text, and what is put into the text
OF_THE_CODE = [
    ("README.md", "Python {0[0]}.{0[1]} or newer", ["cli.checks.doctor_checks._LEAST_PYTHON"]),
    ("README.md", "asks for the password: {} characters or more", ["guard.accounts.passwords.MIN_PASSWORD_LENGTH"]),
    ("README.zh-CN.md", "至少 {} 个字符", ["guard.accounts.passwords.MIN_PASSWORD_LENGTH"]),
    (
        "docs/tutorial/team.md",
        "asks for a password: {} characters or more",
        ["guard.accounts.passwords.MIN_PASSWORD_LENGTH"],
    ),
    ("docs/tutorial/team.zh-CN.md", "至少 {} 个字符", ["guard.accounts.passwords.MIN_PASSWORD_LENGTH"]),
    ("docs/reference/models.md", "At most {} candidates are considered", ["engine.runners.base.MAX_TOP_K"]),
    ("docs/reference/models.md", "at most {} token ids, -100 to 100 each", ["http.api.openai.chat_schema._MAX_BIASES"]),
    ("docs/reference/models.md", "| `n` | 1 to {};", ["http.api.openai.chat_schema.MAX_CHOICES"]),
    (
        "docs/reference/models.md",
        "or takes more than a second of processor time, {} MiB or four million characters",
        [("models.text.template_process._MEMORY_BYTES", MIB)],
    ),
    (
        "docs/reference/models.md",
        "in the wheel `{}`",
        ["wheel of SmolLM2"],
    ),
    (
        "docs/adr/0012-templates-in-a-child.md",
        "{} MiB of address space, four million characters of text",
        [("models.text.template_process._MEMORY_BYTES", MIB)],
    ),
    (
        "docs/how-to/clients.md",
        "`/v1/completions` takes up to {} prompts",
        ["http.api.openai.completions_schema.MAX_PROMPTS"],
    ),
    ("docs/reference/errors.md", "at most {} levels of nesting", ["http.wire.strict_json.MAX_DEPTH"]),
    ("docs/reference/errors.md", "anything else: {} KiB", [("http.wire.schema.MAX_PLAIN_BYTES", 1024)]),
    ("docs/how-to/runbook.md", "for at most {} minutes;", [("guard.accounts.throttle._MAX_WAIT_S", 60)]),
    ("docs/how-to/audit.md", "(at least {} days)", ["audit.verify.prune.MIN_DAYS"]),
    ("docs/explanation/request-path.md", "for up to {} ms into one delta", ["collect_ms"]),
    ("docs/adr/0009-batched-deltas.md", "for up to {} ms", ["collect_ms"]),
    (
        "docs/explanation/architecture.md",
        "one way through the layers; {} cached tokens",
        ["engine.runners.native.library.PAGE_TOKENS"],
    ),
    ("docs/adr/0011-public-prompt-prefix.md", "a page holds {} tokens", ["engine.runners.native.library.PAGE_TOKENS"]),
    (
        "docs/adr/0010-prefaulted-cache.md",
        "{} tokens for each of `engine.max_num_seqs`",
        ["engine.runners.native.runner._READY_TOKENS"],
    ),
    ("docs/adr/0008-own-forward-pass.md", "one scale for {} numbers", ["engine.runners.native.library.GROUP"]),
    ("docs/adr/0008-own-forward-pass.md", "heads of {0[0]} or {0[1]}", ["engine.runners.native.weights._HEAD_SIZES"]),
    (
        "docs/adr/0013-own-gunicorn-worker.md",
        "a minimum speed of {} KiB a second",
        [("http.server.receiving._LEAST_BYTES_PER_S", 1024)],
    ),
    (
        "docs/adr/0014-audit-floods-clocks-keys.md",
        "The first {} failures of an address",
        ["audit.log._NUM_SINGLE_FAILURES"],
    ),
    ("docs/reference/accounts.md", "A name has 1 to {} letters", ["guard.accounts.names._MAX_LENGTH"]),
    ("docs/reference/accounts.md", "{} hex digits of its SHA-256", ["guard.accounts.names._DIGEST_LENGTH"]),
]


@pytest.mark.parametrize(
    ("document", "claim", "names"), OF_THE_CODE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_number_of_the_code_is_what_the_document_says(document, claim, names):
    values = [code(name) if isinstance(name, str) else n(code(name[0]) / name[1]) for name in names]
    page = text_of(ROOT / document)
    spelled = [WORDS.get(value, value) if isinstance(value, int) else value for value in values]
    assert claim.format(*values) in page or claim.format(*spelled) in page, claim.format(*values)


# document, its text, the configuration keys
OF_THE_DEFAULTS = [
    ("README.md", "`PORT` ({}), `HOST` ({})", ["server.port", "server.host"]),
    ("README.zh-CN.md", "`PORT`（默认 {}）、`HOST`（默认 {}）", ["server.port", "server.host"]),
    ("docs/how-to/backup.md", "`server.drain_timeout_s` ({} s by default)", ["server.drain_timeout_s"]),
    ("docs/reference/models.md", "`chat.default_temperature`, {} |", ["chat.default_temperature"]),
    ("docs/reference/models.md", "`chat.default_top_p`, {} |", ["chat.default_top_p"]),
    ("docs/reference/models.md", "`chat.default_repetition_penalty`, {} |", ["chat.default_repetition_penalty"]),
    (
        "docs/explanation/performance.md",
        "500 clients at once on {} slots and {} queue positions",
        ["engine.max_num_seqs", "limits.max_waiting"],
    ),
]


@pytest.mark.parametrize(
    ("document", "claim", "keys"), OF_THE_DEFAULTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_default_is_what_the_document_says(document, claim, keys, defaults):
    values = [getattr(getattr(defaults, section), key) for section, key in (key.split(".") for key in keys)]
    assert claim.format(*values) in text_of(ROOT / document), claim.format(*values)


def test_how_often_a_running_request_is_looked_at_is_what_the_documents_say():
    poll_s = ServiceOptions().poll_s
    path = text_of(DOCS / "explanation" / "request-path.md")
    assert f"within `poll_s` = {poll_s:g} s" in path
    assert f"asks it at least every {poll_s * 1000:g} ms" in path
    assert code("chat.abort_checks._REVOCATION_INTERVAL_S") == 0.5
    assert "every half second whether the session was revoked" in path
    assert "running answers within half a second" in text_of(DOCS / "how-to" / "replicas.md")


def test_when_the_space_alarm_comes_is_what_the_runbook_says(defaults):
    assert f"at {defaults.audit.space_alarm * 100:.0f} % (`audit.space_alarm`)" in text_of(
        DOCS / "how-to" / "runbook.md"
    )


def test_systemd_tries_as_often_as_the_document_says():
    unit = (ROOT / "systemd" / "chatsvc-web.service").read_text(encoding="utf-8")
    pause_s, tries = (
        int(re.search(rf"^{name}=(\d+)", unit, re.MULTILINE)[1]) for name in ("RestartSec", "StartLimitBurst")
    )
    assert (pause_s, pause_s * tries) == (10, 600)
    assert "restarted every ten seconds. After ten minutes of failures systemd gives up" in text_of(
        DOCS / "how-to" / "tls.md"
    )


def test_the_levels_of_packages_are_those_that_the_linter_enforces():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    rows = re.findall(
        r"^\| \d+ \| (.+?) \|", (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == [set(re.split(r" [|:] ", layer)) for layer in layers]


def test_the_steps_of_a_request_have_the_same_numbers_in_the_document_and_in_the_code():
    page = (DOCS / "explanation" / "request-path.md").read_text(encoding="utf-8")
    steps = {int(number): name for number, name in re.findall(r"^\| \*\*(\d+) ([a-z ]+)\*\*", page, re.MULTILINE)}
    assert list(steps) == list(range(1, 14))
    source = ROOT / "src" / "chatsvc"
    gate = (source / "guard" / "gate.py").read_text(encoding="utf-8")
    named = {int(number): name.lower() for number, name in re.findall(r"^(\d+)\. (\w+):", gate, re.MULTILINE)}
    assert named == {number: steps[number] for number in (1, 2, 3, 5, 6, 7)}
    assert {int(number) for number in re.findall(r"# \((\d+)\)", gate)} == {2, 3, 5, 6, 7}
    service = (source / "chat" / "service.py").read_text(encoding="utf-8")
    commented = re.findall(r"# \((\d+)\) ([a-z ]+)", service)
    assert {int(number): name.strip() for number, name in commented} == {
        number: steps[number] for number in range(8, 14)
    }
    hooks = (source / "http" / "wire" / "hooks.py").read_text(encoding="utf-8")
    assert dict(re.findall(r"\((\d)\) ([a-z]+)", hooks)).items() >= {("1", steps[1]), ("2", steps[2]), ("3", steps[3])}
    assert (source / "http" / "wire" / "schema.py").read_text(encoding="utf-8").startswith('"""Step 4 ')


def test_every_metric_is_in_the_reference_and_nothing_else(defaults):
    ops = next(path for path in (ROOT / "src/chatsvc/http/api").rglob("ops.py")).read_text(encoding="utf-8")
    gauges = set(re.findall(r'^\s+"(chatsvc_\w+)": \(', ops, re.MULTILINE))
    counted = {metric.name + ("_total" if metric.type == "counter" else "") for metric in Metrics().registry.collect()}
    rows = re.findall(
        r"^\| `(chatsvc_\w+)` \|", (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(gauges) > 5
    assert set(rows) == gauges | counted


def test_the_exit_codes_of_a_verification_are_what_the_document_says():
    rows = re.findall(r"^\| (\d) \|", (DOCS / "how-to" / "audit.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = ("CLEAN", "TAMPERED", "TORN_TAIL", "FEWER_RECORDS", "UNKNOWN_KEY")
    assert {int(row) for row in rows} == {code(f"audit.verify.verdict.{name}") for name in names} | {
        code("cli.main.EXIT_COULD_NOT")
    }


NO_KEYS = {"audit.clock", "audit.vkey", "chat.example", "chat.generate"}  # actions of records, a file, a host


def test_every_key_that_a_document_names_is_one():
    sections = {name: getattr(field.annotation, "model_fields", {}) for name, field in Settings.model_fields.items()}
    wrong = [
        f"{path.relative_to(ROOT)}: {section}.{key}"
        for path in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]
        if path.name not in {"CHANGELOG.md", "audit-format.md", "http.md"}
        for section, key in re.findall(r"`([a-z]+)\.([a-z_]+)(?: = [^`]*)?`", path.read_text(encoding="utf-8"))
        if sections.get(section) and key not in sections[section] and f"{section}.{key}" not in NO_KEYS
    ]
    assert wrong == []


def kept(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((DOCS / "bench" / f"{name}.json").read_text(encoding="utf-8"))
    del result["machine"]
    return result


def sealed_pairs(result: dict[str, Any]) -> list[sealed.Pair]:
    starts = ("plain", "sealed")
    return [sealed.Pair(**one | {kind: sealed.Start(**one[kind]) for kind in starts}) for one in result["pairs"]]


# How each table of the performance page is made from what docs/bench keeps.
TABLES = {
    "throughput": lambda _: report.markdown(report.kept(DOCS / "bench")),
    "audit": lambda result: audit.table(result["commits"], result["verification"]),
    "crowd": crowd._table,
    "gap": lambda result: gap.table([gap.Join(**one) for one in result["joins"]]),
    "logins": lambda result: logins._table(result["rush"], result["tries"]),
    "memory": lambda result: memory._table([memory.Outcome(**one) for one in result["outcomes"]]),
    "prefix": lambda result: prefix.table(result["first_s"]),
    "profile": lambda result: profile._table(result["rows"]),
    "quality": lambda result: quality._table(result["rows"]),
    "sealed": lambda result: sealed.table(sealed_pairs(result)),
    "soak": lambda result: soak._table(
        result["before_mib"], result["after_mib"], result["num_requests"], result["num_failed"]
    ),
}


def embedded(name: str) -> str:
    page = PERFORMANCE.read_text(encoding="utf-8")
    found = re.search(rf"<!-- bench:{name} -->\n(.*?)<!-- /bench:{name} -->", page, re.DOTALL)
    assert found is not None, name
    return found[1].strip()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_measurements_is_what_docs_bench_holds(name):
    result = kept(name) if name != "throughput" else {}
    assert embedded(name) == TABLES[name](result).strip()


def test_the_run_of_kills_is_what_docs_bench_holds():
    result = kept("kills")
    row = embedded("kills").splitlines()[-1]
    wanted = [result[name] for name in ("kills", "answered", "streams_begun", "records", "closed_as_aborted")]
    assert [int(cell) for cell in row.strip("| ").split(" | ")][:5] == wanted
    assert all(not result[name] for name in kills.MUST_BE_EMPTY)


def test_the_readme_says_how_many_times_faster_as_docs_bench_does():
    measured = [one for run in report.kept(DOCS / "bench") for one in run.measurements]
    speeds = {
        subject: median(
            one.tokens_per_s
            for one in measured
            if (one.scenario, one.num_streams, one.subject) == ("short", 16, subject)
        )
        for subject in ("chatsvc", "llama.cpp-Q8_0", "vllm-cpu")
    }
    for page in ("README.md", "README.zh-CN.md"):
        text = text_of(ROOT / page)
        assert f"{speeds['chatsvc'] / speeds['llama.cpp-Q8_0']:.1f} " in text
        assert f"{speeds['chatsvc'] / speeds['vllm-cpu']:.1f} " in text


def test_each_table_names_its_machine_command_and_time():
    page = PERFORMANCE.read_text(encoding="utf-8")
    for path in sorted((DOCS / "bench").glob("*.json")):
        if path.stem == "results":  # these tables carry their own line
            continue
        head = json.loads(path.read_text(encoding="utf-8"))["machine"]
        command = head["command"].removeprefix(".venv/bin/")
        assert f"| {path.stem} | {head['measured_at'][:10]} | `{head['commit']}` | `{command}` |" in page, path.stem
