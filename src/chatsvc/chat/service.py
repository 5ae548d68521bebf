"""A completion from admission to the last delta: the steps 8–13 of ``docs/explanation/request-path.md``.

Knows nothing about HTTP: it takes a request that passed the schema and yields what happens.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.log import AuditLog
from chatsvc.chat.abort_checks import AbortChecks
from chatsvc.chat.choices import RunningChoice, advance_all
from chatsvc.chat.conversations import Conversations
from chatsvc.chat.drain import Drain
from chatsvc.chat.planning import Plan, Planner
from chatsvc.chat.running_answers import RunningAnswer
from chatsvc.chat.tool_turns import with_calls
from chatsvc.chat.types import ChatRequest, Delta, Event, Finish, Message, ScoredToken, Start, Usage, Waiting
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.engine.web_side.generation import Generation
from chatsvc.errors import (
    AuditUnavailable,
    ChatsvcError,
    ClientGone,
    ConversationDeleted,
    Draining,
    EngineUnavailable,
    LimitExceeded,
    StoreUnavailable,
)
from chatsvc.guard.gate import Admission
from chatsvc.observe.metrics import Metrics
from chatsvc.observe.streak import Streak


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """``poll_s``: how often a running request is looked after, at the least."""

    deadline_s: float = 300.0
    poll_s: float = 0.2


@dataclass(frozen=True, slots=True)
class Call:
    """What a request brings besides its words."""

    admission: Admission
    account_id: str
    facts: Facts
    is_gone: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class Whole:
    """One choice, whole; ``scored`` where log-probabilities were asked for."""

    text: str = ""
    scored: tuple[ScoredToken, ...] = ()

    def take(self, piece: Delta) -> None:
        """Add a piece."""
        self.text += piece.text
        self.scored += piece.scored


@dataclass(slots=True)
class _Progress:
    """How far a request is; what its records and counters are made from."""

    started_at: float
    answer: RunningAnswer
    choices: list[RunningChoice]
    num_prompt_tokens: int
    first_token_at: float | None = None
    reason: str = "error"

    @property
    def text(self) -> str:
        """What was answered so far; of several choices one after the other."""
        return "\n".join(choice.completion.text for choice in self.choices)

    @property
    def num_completion_tokens(self) -> int:
        """Of all choices."""
        return sum(choice.completion.num_tokens for choice in self.choices)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt that the first choice found in the cache."""
        return self.choices[0].num_cached_tokens


@dataclass(frozen=True, slots=True)
class ChatService:
    """Everything a completion needs, wired once in ``app.py``."""

    engine: EngineClient
    audit: AuditLog
    planner: Planner
    conversations: Conversations
    metrics: Metrics
    drain: Drain
    options: ServiceOptions = ServiceOptions()
    clock: Callable[[], float] = time.monotonic
    new_id: Callable[[], str] = lambda: secrets.token_hex(16)
    streak: Streak = field(default_factory=Streak)

    def complete(self, call: Call, request: ChatRequest) -> tuple[str, Finish]:
        """The whole text of a request for one choice, and the end."""
        wholes, finish = self.complete_all(call, request)
        return wholes[0].text, finish

    def complete_all(self, call: Call, request: ChatRequest) -> tuple[list[Whole], Finish]:
        """All choices, whole, and the end."""
        wholes = [Whole() for _ in range(request.num_choices)]
        event: Event = Waiting()
        for event in self.stream(call, request):
            if isinstance(event, Delta):
                wholes[event.index].take(event)
        assert isinstance(event, Finish), "a stream ends with Finish or an error"
        return wholes, event

    def stream(self, call: Call, request: ChatRequest) -> Iterator[Event]:
        """What happens, as it happens; the last event is Finish. Close the iterator to cancel.

        The first event is Start, before a slot is waited for. Where a slot is free, everything that can be refused is
        refused before the second event.
        """
        watch = AbortChecks(
            call.is_gone,
            call.admission.is_revoked,
            self.drain,
            deadline_s=self.options.deadline_s,
            interval_s=self.options.poll_s,
            clock=self.clock,
        )
        started_at = self.clock()
        try:
            with self.streak.counting():
                self._refuse_early()
                # (8) template -> prompt ids -> charge
                plan = self.planner.plan(call.account_id, request)
                self._charge(call, plan)
                start = Start(self.new_id(), plan.conversation_id, plan.card.name)
                is_new = request.conversation_id is None
                with self.conversations.answers.begin(call.account_id, plan.conversation_id, is_new=is_new) as answer:
                    yield start
                    # (9) turn: a slot
                    while not call.admission.wait_turn(plan.cost_tokens, self.options.poll_s):
                        watch.check()
                        answer.check()
                        yield Waiting(call.admission.position(), call.admission.estimate_s())
                    progress = _Progress(started_at, answer, plan.choices(), len(plan.prompt_ids))
                    yield from self._recorded(call, request, plan, progress, watch)
        finally:
            # (13) whatever happened, the slot is free
            call.admission.release()
        yield _finish(start, progress)

    def _charge(self, call: Call, plan: Plan) -> None:
        try:
            call.admission.charge(plan.cost_tokens)
        except LimitExceeded as error:
            self.audit.count_denial(call.facts, error.code or "limit_exceeded")
            raise

    def _refuse_early(self) -> None:
        """What would refuse the request later anyway refuses it before it waits."""
        if self.drain.has_begun:
            raise Draining
        if self.audit.problem() is not None:
            raise AuditUnavailable
        status = self.engine.status()
        if not status.ready:
            raise Draining if status.draining else EngineUnavailable

    def _recorded(
        self, call: Call, request: ChatRequest, plan: Plan, progress: _Progress, watch: AbortChecks
    ) -> Iterator[Event]:
        """Generate between a ``begin`` and an ``end`` record; settle the quota by what was really used."""
        # (10) durable before the first token is asked for
        with self.audit.begin(dataclasses.replace(call.facts, model=plan.card.digest)) as record:
            try:
                yield from self._generate(call, request, plan, progress, watch)
                self._keep(plan, progress, complete=True)
                record.result = Result("allowed", status=200, reason=progress.reason)
            except (GeneratorExit, ClientGone):
                progress.reason = "cancelled"
                record.result = Result("aborted", status=499, reason="client_gone")
                self._keep_what_there_was(plan, progress)
                raise
            except ConversationDeleted as error:
                progress.reason = "cancelled"
                record.result = Result("aborted", status=404, reason=error.code)
                raise
            except ChatsvcError as error:
                progress.reason = "error"
                record.result = Result("error", reason=error.code)
                self._keep_what_there_was(plan, progress)
                raise
            finally:
                # (13) the end record, also of what was cut off
                call.admission.settle(progress.num_prompt_tokens + progress.num_completion_tokens)
                record.result = dataclasses.replace(
                    record.result,
                    num_prompt_tokens=progress.num_prompt_tokens,
                    num_completion_tokens=progress.num_completion_tokens,
                    content=_as_text(plan.turns, progress.text),
                )
                self._count(progress)

    def _generate(
        self, call: Call, request: ChatRequest, plan: Plan, progress: _Progress, watch: AbortChecks
    ) -> Iterator[Event]:
        """Steps 7 and 8. A model that changes while the submit is on its way costs one more try, not the request."""
        try:
            yield from self._pieces(call, plan, progress, watch)
        except Draining:
            if progress.num_completion_tokens or self.drain.has_begun:
                raise
            again = self.planner.plan(call.account_id, request)
            progress.choices = again.choices()
            progress.num_prompt_tokens = len(again.prompt_ids)
            yield from self._pieces(call, again, progress, watch)

    def _pieces(self, call: Call, plan: Plan, progress: _Progress, watch: AbortChecks) -> Iterator[Event]:
        if not plan.sampling.max_tokens:  # only the prompt is counted
            progress.reason = progress.choices[0].end = "length"
            return

        def check() -> None:
            watch.check()
            progress.answer.check()

        generations: list[Generation] = []
        try:
            # (11) ids to the engine
            for sampling in plan.samplings():
                generation = self.engine.submit(plan.prompt_ids, sampling, call.account_id, plan.card, plan.num_public)
                generations.append(generation)  # one by one: where the next is refused, this one is cancelled
            # (12) ids -> text -> stop strings -> delta
            for event in advance_all(progress.choices, generations, self.options.poll_s, check):
                if progress.first_token_at is None and progress.num_completion_tokens:
                    progress.first_token_at = self.clock()
                yield event
        finally:
            for generation in generations:
                generation.cancel()
        progress.reason = progress.choices[0].end or "stop"

    def _keep(self, plan: Plan, progress: _Progress, *, complete: bool) -> None:
        """Store the turn."""
        if plan.conversation_id is not None:
            turns = [*plan.turns, Message("assistant", progress.text)]
            self.conversations.append(progress.answer, turns, complete=complete)

    def _keep_what_there_was(self, plan: Plan, progress: _Progress) -> None:
        """Store a turn that was cut off, unless nothing of the answer was there yet."""
        if progress.text:
            with suppress(StoreUnavailable):  # what ended it is on its way to the caller, if there still is one
                self._keep(plan, progress, complete=False)

    def _count(self, progress: _Progress) -> None:
        num_tokens = progress.num_completion_tokens
        self.metrics.observe_generation(
            progress.reason, progress.num_prompt_tokens, num_tokens, progress.num_cached_tokens
        )
        if progress.first_token_at is not None:
            first_token_s = progress.first_token_at - progress.started_at
            self.metrics.observe_latency(first_token_s, self.clock() - progress.started_at, num_tokens)


def _finish(start: Start, progress: _Progress) -> Finish:
    return Finish(
        id=start.id,
        reasons=tuple(choice.end or "stop" for choice in progress.choices),
        usage=Usage(progress.num_prompt_tokens, progress.num_completion_tokens, progress.num_cached_tokens),
        model=start.model,
        conversation_id=start.conversation_id,
    )


def _as_text(turns: tuple[Message, ...], completion: str) -> str:
    """What was said, for the audit levels that keep it; the log decides."""
    said = [(message.role, with_calls(message)) for message in turns]
    return "\n".join(f"{role}: {text}" for role, text in [*said, ("assistant", completion)])
