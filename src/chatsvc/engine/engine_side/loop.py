"""The engine's loop, in one thread: receive frames, step, send the results; when idle, let the runner work ahead.

Sequences wait here, first come first served (the web side queues fairly), until the runner has a slot. When a
connection closes, breaks or is not read, its sequences are cancelled. Knows nothing about models, texts or principals.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from chatsvc.engine.engine_side.connections import Client, Clients
from chatsvc.engine.protocol import (
    HEARTBEAT_INTERVAL_S,
    Accepted,
    Cancel,
    Delta,
    Finished,
    FinishReason,
    Heartbeat,
    Submit,
    TokenLogprobs,
)
from chatsvc.engine.runners.base import Runner, StepOutput
from chatsvc.engine.runners.grammars import Constraint, GrammarRefused, Grammars

_log = logging.getLogger(__name__)

# With fewer running sequences, steps are short and deltas few: collecting them would save little.
_MANY = 5
# Most grammars are compiled within it, so their sequences need not wait for the step after the next one.
_COMPILE_S = 0.003


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Times of the loop.

    Attributes:
        linger_s: pause of an idle engine before the first step, so that a burst starts together. collect_s: while many
        run, tokens are collected for this long into one delta: every delta costs web process, nginx and
            client as much as several tokens cost the engine, on the same processor.
        accept_while_draining_s: submits in transit when draining was announced are still accepted for this long.
        drain_timeout_s: sequences that have not finished so long after the announcement end with an error.
    """

    linger_s: float = 0.005
    collect_s: float = 0.08
    accept_while_draining_s: float = 1.0
    drain_timeout_s: float = 30.0


@dataclass(slots=True, eq=False)
class _Sequence:
    """One submit; ``number`` names it to the runner, because two clients may use the same wire id.

    ``collected`` are ids that have not been posted yet; the last ones were at ``posted_at``.
    """

    number: int
    client: Client
    submit: Submit
    compiling: Future[Constraint] | None = None
    num_generated: int = 0
    num_cached: int = 0
    collected: list[int] = field(default_factory=list)
    collected_logprobs: list[TokenLogprobs] = field(default_factory=list)
    posted_at: float = -math.inf


class Loop:
    """Owns the runner, the clients and all sequences. Everything happens in :meth:`run`'s thread, but compiling."""

    def __init__(
        self,
        runner: Runner,
        clients: Clients,
        options: LoopOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._clients = clients
        self._options = options or LoopOptions()
        self._clock = clock
        self._by_wire_id: dict[tuple[Client, int], _Sequence] = {}
        self._grammars = Grammars(runner.card)
        self._compiling: list[_Sequence] = []
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}
        self._next_number = 0
        self._num_steps = 0
        self._num_generated_tokens = 0
        self._last_step_s = 0.0
        self._next_heartbeat = 0.0
        self._has_rested = False
        self._is_adopted = False
        self._drain_requested = False
        self._draining_since: float | None = None

    def request_drain(self) -> None:
        """Finish all sequences and return from :meth:`run`. May be called from a signal handler."""
        self._drain_requested = True

    def run(self) -> None:
        """Serve until drained."""
        try:
            while not self._is_drained():
                self._take()
                self._take_compiled()
                self._start_waiting()
                if self._running:
                    self._step()
                    self._has_rested = False
                elif not self._has_rested:
                    self._has_rested = not self._runner.rest()
                self._beat()
                self._clients.send()
            for sequence in list(self._by_wire_id.values()):
                self._finish(sequence, "error", "the engine is shutting down")
            self._clients.send()
        finally:
            self._grammars.close()
            self._clients.close()

    # receive

    def _take(self) -> None:
        was_idle = not self._by_wire_id
        self._poll(HEARTBEAT_INTERVAL_S / 2 if was_idle and self._has_rested else 0)
        if was_idle and self._waiting:
            until = self._clock() + self._options.linger_s
            while (left_s := until - self._clock()) > 0:
                self._poll(left_s)
        if self._drain_requested and self._draining_since is None:
            self._draining_since = self._next_heartbeat = self._clock()
            _log.info("draining: %d running, %d waiting", len(self._running), len(self._waiting))

    def _poll(self, timeout_s: float) -> None:
        messages, newcomers = self._clients.poll(timeout_s)
        for client in newcomers:
            self._clients.post(client, self._heartbeat())
        for client, message in messages:
            if isinstance(message, Submit):
                self._submit(client, message)
            elif isinstance(message, Cancel):
                self._cancel(client, message.sequence_id)
            else:
                self._is_adopted = True
                self._next_heartbeat = 0.0
        for client in self._clients.drop_broken():
            for sequence in [one for (owner, _), one in self._by_wire_id.items() if owner is client]:
                self._forget(sequence)

    def _submit(self, client: Client, submit: Submit) -> None:
        if (client, submit.sequence_id) in self._by_wire_id:
            _log.warning("a client is dropped: it used the sequence id %d twice", submit.sequence_id)
            client.connection.broken = True
            return
        self._next_number += 1
        sequence = _Sequence(self._next_number, client, submit)
        self._by_wire_id[client, submit.sequence_id] = sequence
        if submit.sampling.grammar is None:
            self._waiting.append(sequence)
        else:
            sequence.compiling = self._grammars.compile(submit.sampling.grammar)
            self._compiling.append(sequence)
        if self._refuses_new():
            self._forget(sequence)
            self._finish(sequence, "error", "draining")

    def _cancel(self, client: Client, sequence_id: int) -> None:
        sequence = self._by_wire_id.get((client, sequence_id))
        if sequence is not None:
            self._forget(sequence)
            self._finish(sequence, "cancelled")

    def _forget(self, sequence: _Sequence) -> None:
        del self._by_wire_id[sequence.client, sequence.submit.sequence_id]
        if self._running.pop(sequence.number, None) is not None:
            self._runner.cancel(sequence.number)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            assert sequence.compiling is not None
            sequence.compiling.cancel()
            self._compiling.remove(sequence)

    def _take_compiled(self) -> None:
        """Let sequences wait for the runner whose grammar has been compiled, and end those whose grammar is refused."""
        if not self._compiling:
            return
        futures = [one.compiling for one in self._compiling if one.compiling is not None]
        concurrent.futures.wait(futures, _COMPILE_S, concurrent.futures.FIRST_COMPLETED)
        for sequence in [one for one in self._compiling if one.compiling is not None and one.compiling.done()]:
            assert sequence.compiling is not None
            self._compiling.remove(sequence)
            error = sequence.compiling.exception()
            if error is None:
                self._clients.post(sequence.client, Accepted(sequence_id=sequence.submit.sequence_id))
                self._waiting.append(sequence)
            elif isinstance(error, GrammarRefused):
                self._finish(sequence, "error", refusal=str(error))
            else:
                _log.error("a grammar was not compiled", exc_info=error)
                self._finish(sequence, "error", "its grammar was not compiled")

    # step

    def _start_waiting(self) -> None:
        if self._waiting and len(self._running) < self._runner.max_num_seqs:
            self._post_collected(0.0)  # a prompt makes the next step long
            self._clients.send()
        while self._waiting and len(self._running) < self._runner.max_num_seqs:
            sequence = self._waiting.popleft()
            submit = sequence.submit
            try:
                self._runner.add(
                    sequence.number,
                    submit.prompt_ids,
                    submit.sampling,
                    submit.sharing_key,
                    submit.num_public,
                    sequence.compiling.result() if sequence.compiling is not None else None,
                )
            except (
                ValueError,
                RuntimeError,
                TypeError,
            ) as error:  # raised by native libraries for input that they refuse
                _log.warning("a sequence of %d tokens was refused: %s", len(submit.prompt_ids), error)
                self._finish(sequence, "error", "the runner refused it")
                continue
            self._running[sequence.number] = sequence

    def _step(self) -> None:
        started = self._clock()
        outputs = self._runner.step()
        self._last_step_s = self._clock() - started
        self._num_steps += 1
        if self._last_step_s > HEARTBEAT_INTERVAL_S:
            self._next_heartbeat = 0.0
        for output in outputs:
            sequence = self._running.get(output.sequence_id)
            if sequence is not None:
                self._give(sequence, output)
        self._post_collected(self._options.collect_s if len(self._running) >= _MANY else 0.0)

    # send results

    def _give(self, sequence: _Sequence, output: StepOutput) -> None:
        sequence.num_generated += output.num_generated
        sequence.num_cached = max(sequence.num_cached, output.num_cached_tokens)
        self._num_generated_tokens += output.num_generated
        sequence.collected += output.token_ids
        sequence.collected_logprobs += output.logprobs
        if output.finish_reason is not None:
            del self._running[sequence.number]
            self._finish(sequence, output.finish_reason, output.detail, output.refusal)

    def _post_collected(self, collect_s: float) -> None:
        """Post collected tokens that cannot wait for the next step, which will take about as long as the last one."""
        now = self._clock()
        for sequence in self._running.values():
            if sequence.collected and now + self._last_step_s - sequence.posted_at > collect_s:
                self._post(sequence)
                sequence.posted_at = now

    def _post(self, sequence: _Sequence) -> None:
        delta = Delta(
            sequence_id=sequence.submit.sequence_id,
            token_ids=sequence.collected,
            logprobs=sequence.collected_logprobs,
        )
        self._clients.post(sequence.client, delta)
        sequence.collected = []
        sequence.collected_logprobs = []

    def _finish(self, sequence: _Sequence, reason: FinishReason, detail: str = "", refusal: str = "") -> None:
        wire_id = sequence.submit.sequence_id
        self._by_wire_id.pop((sequence.client, wire_id), None)
        if sequence.collected:
            self._post(sequence)
        finished = Finished(
            sequence_id=wire_id,
            reason=reason,
            num_completion_tokens=sequence.num_generated,
            num_cached_tokens=sequence.num_cached,
            detail=detail,
            refusal=refusal,
        )
        self._clients.post(sequence.client, finished)

    def _beat(self) -> None:
        now = self._clock()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_INTERVAL_S / 2
            self._clients.post_all(self._heartbeat())

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            status="serving" if self._draining_since is None else "draining",
            num_steps=self._num_steps,
            num_running=len(self._running),
            num_waiting=len(self._waiting) + len(self._compiling),
            last_step_s=self._last_step_s,
            num_generated_tokens=self._num_generated_tokens,
            cache_usage=self._runner.cache_usage(),
            is_adopted=self._is_adopted,
        )

    # draining

    def _refuses_new(self) -> bool:
        since = self._draining_since
        return since is not None and self._clock() - since > self._options.accept_while_draining_s

    def _is_drained(self) -> bool:
        since = self._draining_since
        if since is None:
            return False
        if not self._by_wire_id:
            return self._refuses_new()
        return self._clock() - since > self._options.drain_timeout_s
