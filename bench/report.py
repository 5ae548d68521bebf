"""Results as JSON, as Markdown tables and as plots. Knows nothing about how they were measured.

A scenario's results are always of one run, in which all servers were measured in turn; another's may be of another.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

from bench.measure import Measurement

Results = Sequence[Measurement]
_TITLES = {
    "short": "64 tokens in, 128 out",
    "long": "512 tokens in, 32 out",
    "conversation": "ten turns of 64 in and 32 out",
}
# Issue and table: what ours must reach against the others, as (row, streams, value, at most?, bound by opponent).
_GOALS = (
    ("tokens/s, 1 stream", "short", 1, "tokens_per_s", (1.45, 1.0)),
    ("tokens/s, 8 streams", "short", 8, "tokens_per_s", (2.8, 2.3)),
    ("tokens/s, 16 streams", "short", 16, "tokens_per_s", (3.5, 2.4)),
    ("first token, 16 streams", "short", 16, "first_s", (0.16, 0.23)),
    ("512-token prompt, first token, 1 stream", "long", 1, "first_s", (0.3, 0.4)),
)
_OPPONENTS = ("llama.cpp-Q8_0", "llama.cpp-Q4_0")


@dataclass(frozen=True, slots=True)
class Run:
    """What one command measured, and where."""

    machine: Mapping[str, Any]
    measurements: Results


def kept(folder: Path) -> list[Run]:
    """The runs in results.json, if there is one."""
    path = folder / "results.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    return [Run(run["machine"], [Measurement(**one) for one in run["measurements"]]) for run in runs]


def merged(before: Sequence[Run], new: Run) -> list[Run]:
    """All runs, each with the scenarios that no later one has measured, in the scenarios' order."""
    measured = {one.scenario for one in new.measurements}
    older = [Run(run.machine, [one for one in run.measurements if one.scenario not in measured]) for run in before]
    runs = [run for run in (new, *older) if run.measurements]
    return sorted(runs, key=lambda run: min(list(_TITLES).index(one.scenario) for one in run.measurements))


def write(folder: Path, runs: Sequence[Run]) -> None:
    """results.json and a plot a scenario, below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"runs": [asdict(run) for run in runs]}
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for run in runs:
        for scenario, those in _by_scenario(run.measurements):
            _plot(folder / f"{scenario}.svg", scenario, those)


def markdown(runs: Sequence[Run]) -> str:
    """Every table, below the run that it is of."""
    parts = []
    for run in runs:
        parts.append(_machine(run.machine))
        for scenario, those in _by_scenario(run.measurements):
            title = _TITLES[scenario]
            parts.append(f"### {title}\n\n{_table(those)}\n\n![{title}](../bench/{scenario}.svg)")
    everything = [one for run in runs for one in run.measurements]
    parts += [_ratios(everything), _layers(everything), _processors(everything)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _by_scenario(measurements: Results) -> list[tuple[str, Results]]:
    names = _in_order(measurements, lambda one: one.scenario)
    return [(name, [one for one in measurements if one.scenario == name]) for name in names]


def _machine(head: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in head["versions"].items())
    features = " ".join(head["features"])
    return (
        f"Measured {head['measured_at']} at commit {head['commit']} by `{head['command']}`: {head['processor']}, "
        f"{head['num_cores']} cores, {head['memory_gib']} GiB, {features}; kernel {head['kernel']}; {versions}. "
        f"Load average before the run: {head['load_before']:.2f}."
    )


def _table(measurements: Results) -> str:
    counts = _in_order(measurements, lambda one: one.num_streams)
    lines = ["| tokens/s / first token | " + " | ".join(map(str, counts)) + " |", "|---|" + "---|" * len(counts)]
    for subject in _in_order(measurements, lambda one: one.subject):
        cells = [_cell([one for one in measurements if (one.subject, one.num_streams) == (subject, n)]) for n in counts]
        lines.append(f"| {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rounds: Results) -> str:
    if not rounds:
        return "–"
    first = f"{_median(rounds, 'first_s') * 1000:.0f}"
    if rounds[0].later_first_s is not None:
        first += f", later turns {_median(rounds, 'later_first_s') * 1000:.0f}"
    mark = " (!)" if any(one.problems for one in rounds) else ""
    return f"{_median(rounds, 'tokens_per_s'):.0f} / {first} ms{mark}"


def _ratios(measurements: Results) -> str:
    lines = ["### Against the goals", "", "| chatsvc against | Q8_0 | goal | Q4_0 | goal |", "|---|---|---|---|---|"]
    for title, scenario, num_streams, value, bounds in _GOALS:
        cells = []
        for opponent, bound in zip(_OPPONENTS, bounds, strict=True):
            ratio = _ratio(measurements, (scenario, num_streams, value), opponent)
            if ratio is None:
                cells += ["–", ""]
                continue
            at_most = value == "first_s"
            reached = ratio <= bound if at_most else ratio >= bound
            shown = f"**{ratio:.2f}**" if reached else f"{ratio:.2f} (missed)"
            cells += [shown, f"{'at most' if at_most else 'at least'} {bound}"]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(measurements: Results, what: tuple[str, int, str], opponent: str) -> float | None:
    """The median over rounds of ours over theirs in the same round."""
    scenario, num_streams, value = what
    by_round: dict[int, dict[str, float]] = {}
    for one in measurements:
        if (one.scenario, one.num_streams) == (scenario, num_streams):
            by_round.setdefault(one.round, {})[one.subject] = getattr(one, value)
    ratios = [pair["chatsvc"] / pair[opponent] for pair in by_round.values() if {"chatsvc", opponent} <= pair.keys()]
    return statistics.median(ratios) if ratios else None


def _layers(measurements: Results) -> str:
    """The engine alone beside the whole stack, paired by round."""
    pairs: dict[tuple[str, int], list[tuple[Measurement, Measurement]]] = {}
    alone = {(one.scenario, one.num_streams, one.round): one for one in measurements if one.subject.startswith("eng")}
    for one in measurements:
        partner = alone.get((one.scenario, one.num_streams, one.round))
        if one.subject == "chatsvc" and partner is not None and one.scenario == "short":
            pairs.setdefault((one.scenario, one.num_streams), []).append((one, partner))
    if not pairs:
        return ""
    lines = ["### What our own layers cost (64 in, 128 out)", ""]
    lines += ["| streams | throughput kept | first token later by |", "|---|---|---|"]
    for (_, num_streams), both in pairs.items():
        kept = statistics.median(ours.tokens_per_s / engine.tokens_per_s for ours, engine in both)
        later = statistics.median(ours.first_s - engine.first_s for ours, engine in both)
        lines.append(f"| {num_streams} | {kept:.1%} | {later * 1000:.0f} ms |")
    return "\n".join(lines)


def _processors(measurements: Results) -> str:
    """Processor milliseconds a token by process, whole stack, short requests."""
    those = [one for one in measurements if one.subject == "chatsvc" and one.scenario == "short" and one.num_tokens]
    if not those:
        return ""
    roles = [role for role in ("engine", "web", "nginx", "supervisor") if any(role in one.cpu_s for one in those)]
    lines = ["### Processor time a token, by process (whole stack, 64 in, 128 out), in ms", ""]
    lines += ["| streams | " + " | ".join(roles) + " |", "|---|" + "---|" * len(roles)]
    for num_streams in _in_order(those, lambda one: one.num_streams):
        rounds = [one for one in those if one.num_streams == num_streams]
        cells = [
            f"{statistics.median(one.cpu_s.get(role, 0.0) / one.num_tokens for one in rounds) * 1000:.2f}"
            for role in roles
        ]
        lines.append(f"| {num_streams} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plot(path: Path, scenario: str, measurements: Results) -> None:
    """Throughput on the left, time to the first token on the right, against streams."""
    mpl.rcParams["svg.hashsalt"] = "chatsvc"
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for subject in _in_order(measurements, lambda one: one.subject):
        own = [one for one in measurements if one.subject == subject]
        counts = _in_order(own, lambda one: one.num_streams)
        groups = [[one for one in own if one.num_streams == count] for count in counts]
        style = {"marker": "o", "label": subject, "linestyle": "--" if subject.startswith("engine") else "-"}
        left.plot(counts, [_median(group, "tokens_per_s") for group in groups], **style)
        right.plot(counts, [_median(group, "first_s") for group in groups], **style)
    for axes, title in ((left, "tokens/s, all streams together"), (right, "time to the first token, median, s")):
        axes.set(title=title, xlabel="streams at once", xscale="log")
        counts = _in_order(measurements, lambda one: one.num_streams)
        axes.set_xticks(counts, map(str, counts))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    right.set_yscale("log")
    left.legend()
    figure.suptitle(_TITLES[scenario])
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _median(rounds: Results, value: str) -> float:
    return statistics.median(getattr(one, value) for one in rounds)


def _in_order(measurements: Results, key: Callable[[Measurement], Any]) -> list[Any]:
    """The different values of ``key``, as they first appear."""
    return list(dict.fromkeys(key(one) for one in measurements))
