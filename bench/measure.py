"""One measurement: a scenario at a number of streams against one subject, and what came of it.

A subject is a server under load or the engine in process; both answer a scenario's turns with samples.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tokenizers import Tokenizer

from bench import cpu
from bench.inprocess import InProcess
from bench.load import Body, Sample, Streams, Target
from bench.scenarios import Scenario
from bench.shape import render

_SETTLE_S = 1.0


class Subject(Protocol):
    """What is measured."""

    name: str

    def run(self, turns: Sequence[Sequence[Body]]) -> list[list[Sample]]:
        """Send the turns one after the other; the samples of each."""


@dataclass(frozen=True, slots=True)
class ServerSubject:
    """A server that is up."""

    target: Target

    @property
    def name(self) -> str:
        """The target's."""
        return self.target.name

    def run(self, turns: Sequence[Sequence[Body]]) -> list[list[Sample]]:
        """All streams of a turn begin together, on connections that are open already."""
        streams = Streams(self.target, len(turns[0]))
        try:
            return [streams.burst(bodies) for bodies in turns]
        finally:
            streams.close()


@dataclass(frozen=True, slots=True)
class EngineSubject:
    """The engine in process."""

    engine: InProcess
    tokenizer: Tokenizer
    name: str = "engine in process"

    def run(self, turns: Sequence[Sequence[Body]]) -> list[list[Sample]]:
        """The same prompts as ids."""
        answers = []
        for bodies in turns:
            prompts = [self.tokenizer.encode(render(body["messages"])).ids for body in bodies]
            answers.append(self.engine.burst(prompts, bodies[0]["max_tokens"]))
        return answers


@dataclass(frozen=True, slots=True)
class Measurement:
    """One burst (or conversation) of so many streams. Times in seconds; ``cpu_s`` by process."""

    scenario: str
    subject: str
    num_streams: int
    round: int
    tokens_per_s: float
    first_s: float
    first_p95_s: float
    worst_gap_s: float
    num_tokens: int
    wall_s: float
    later_first_s: float | None = None
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    problems: Sequence[str] = ()


def measure(subject: Subject, scenario: Scenario, num_streams: int, number: int) -> Measurement:
    """Let a subject answer a scenario once. ``number`` is the round: every round has texts of its own."""
    seed = number * 100 + num_streams
    turns = list(scenario.turns(num_streams, seed))
    time.sleep(_SETTLE_S)
    before = cpu.seconds_by_role(os.getpid())
    answers = subject.run(turns)
    used = cpu.difference(before, cpu.seconds_by_role(os.getpid()))
    return summarise(scenario, subject.name, number, answers, used)


def summarise(
    scenario: Scenario, name: str, number: int, answers: Sequence[Sequence[Sample]], used: Mapping[str, float]
) -> Measurement:
    """Throughput over the time that streams were open; first-token times of the first turn and of the later ones."""
    wall_s = sum(max(one.ended for one in turn) - min(one.started for one in turn) for turn in answers)
    samples = [sample for turn in answers for sample in turn]
    num_tokens = sum(sample.num_completion for sample in samples)
    first = sorted(sample.first_s for sample in answers[0])
    later = [sample.first_s for turn in answers[1:] for sample in turn if not sample.error]
    return Measurement(
        scenario=scenario.name,
        subject=name,
        num_streams=len(answers[0]),
        round=number,
        tokens_per_s=num_tokens / wall_s,
        first_s=statistics.median(first),
        first_p95_s=first[min(len(first) - 1, int(len(first) * 0.95))],
        worst_gap_s=max(sample.worst_gap_s for sample in samples),
        num_tokens=num_tokens,
        wall_s=wall_s,
        later_first_s=statistics.median(later) if later else None,
        cpu_s=used,
        problems=_problems(scenario, answers),
    )


def _problems(scenario: Scenario, answers: Sequence[Sequence[Sample]]) -> list[str]:
    """What makes a measurement worthless: an answer that failed, or of another length than was asked for."""
    found = {sample.error for turn in answers for sample in turn if sample.error}
    lengths = {sample.num_completion for turn in answers for sample in turn if not sample.error}
    if lengths - {scenario.max_tokens}:
        found.add(f"answers of {sorted(lengths)} tokens, {scenario.max_tokens} asked for")
    prompts = {sample.num_prompt for sample in answers[0] if not sample.error}
    if prompts - {scenario.num_prompt}:
        found.add(f"prompts of {sorted(prompts)} tokens, {scenario.num_prompt} meant")
    return sorted(found)
