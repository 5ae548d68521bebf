"""A completion from admission to the last delta: steps 8 to 13 of ``docs/explanation/request-path.md``.

Knows nothing about HTTP: it takes a request that passed the schema (step 4) and yields events.
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
    """``poll_s``: a running request is checked at least this often."""

    deadline_s: float = 300.0
    poll_s: float = 0.2


@dataclass(frozen=True, slots=True)
class Call:
    """What the service must know about a request besides its content."""

    admission: Admission
    account_id: str
    facts: Facts
    is_gone: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class WholeChoice:
    """The complete text of one choice; ``scored`` if log-probabilities were requested."""

    text: str = ""
    scored: tuple[ScoredToken, ...] = ()

    def take(self, piece: Delta) -> None:
        """Add a delta."""
        self.text += piece.text
        self.scored += piece.scored


@dataclass(slots=True)
class _Progress:
    """The state of a running request, from which its end record and metrics are made."""

    started_at: float
    answer: RunningAnswer
    choices: list[RunningChoice]
    num_prompt_tokens: int
    first_token_at: float | None = None
    reason: str = "error"

    @property
    def text(self) -> str:
        """The text so far; of several choices, one after the other."""
        return "\n".join(choice.completion.text for choice in self.choices)

    @property
    def num_completion_tokens(self) -> int:
        """The sum over all choices."""
        return sum(choice.completion.num_tokens for choice in self.choices)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that the first choice found in the cache."""
        return self.choices[0].num_cached_tokens


@dataclass(frozen=True, slots=True)
class ChatService:
    """Runs completions. Wired once in ``app.py``."""

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
        """The text of a request for one choice, and its end."""
        wholes, finish = self.complete_all(call, request)
        return wholes[0].text, finish

    def complete_all(self, call: Call, request: ChatRequest) -> tuple[list[WholeChoice], Finish]:
        """The texts of all choices, and the end."""
        wholes = [WholeChoice() for _ in range(request.num_choices)]
        event: Event = Waiting()
        for event in self.stream(call, request):
            if isinstance(event, Delta):
                wholes[event.index].take(event)
        assert isinstance(event, Finish), "a stream ends with Finish or an error"
        return wholes, event

    def stream(self, call: Call, request: ChatRequest) -> Iterator[Event]:
        """Yield events as they happen; the last is Finish. Close the iterator to cancel.

        The first event is Start, before the wait for a slot. If a slot is free, every possible refusal comes before
        the second event.
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
                # (8) prompt: template -> ids -> charge
                plan = self.planner.plan(call.account_id, request)
                self._charge(call, plan)
                start = Start(self.new_id(), plan.conversation_id, plan.card.name)
                is_new = request.conversation_id is None
                with self.conversations.answers.begin(call.account_id, plan.conversation_id, is_new=is_new) as answer:
                    yield start
                    # (9) slot
                    while not call.admission.wait_turn(plan.cost_tokens, self.options.poll_s):
                        watch.check()
                        answer.check()
                        yield Waiting(call.admission.position(), call.admission.estimate_s())
                    progress = _Progress(started_at, answer, plan.choices(), len(plan.prompt_ids))
                    yield from self._recorded(call, request, plan, progress, watch)
        finally:
            # (13) end: whatever happened, the slot is released
            call.admission.release()
        yield _finish(start, progress)

    def _charge(self, call: Call, plan: Plan) -> None:
        try:
            call.admission.charge(plan.cost_tokens)
        except LimitExceeded as error:
            self.audit.count_denial(call.facts, error.code or "limit_exceeded")
            raise

    def _refuse_early(self) -> None:
        """Refuse before the wait what could not be answered after it either."""
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
        """Generate between a ``begin`` and an ``end`` record; settle the quota by what was used."""
        # (10) begin record: durable before the first token is asked for
        with self.audit.begin(dataclasses.replace(call.facts, model=plan.card.digest)) as record:
            try:
                yield from self._generate(call, request, plan, progress, watch)
                self._keep(plan, progress, complete=True)
                record.result = Result("allowed", status=200, reason=progress.reason)
            except (GeneratorExit, ClientGone):
                progress.reason = "cancelled"
                record.result = Result("aborted", status=499, reason="client_gone")
                self._keep_partial(plan, progress)
                raise
            except ConversationDeleted as error:
                progress.reason = "cancelled"
                record.result = Result("aborted", status=404, reason=error.code)
                raise
            except ChatsvcError as error:
                progress.reason = "error"
                record.result = Result("error", reason=error.code)
                self._keep_partial(plan, progress)
                raise
            finally:
                # (13) end: settle the quota and write the end record, also after an abort
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
        """Steps 11 and 12. If the model changes before the first token, the request is tried once more."""
        try:
            yield from self._deltas(call, plan, progress, watch)
        except Draining:
            if progress.num_completion_tokens or self.drain.has_begun:
                raise
            again = self.planner.plan(call.account_id, request)
            progress.choices = again.choices()
            progress.num_prompt_tokens = len(again.prompt_ids)
            yield from self._deltas(call, again, progress, watch)

    def _deltas(self, call: Call, plan: Plan, progress: _Progress, watch: AbortChecks) -> Iterator[Event]:
        if not plan.sampling.max_tokens:  # max_tokens 0: only the prompt is counted
            progress.reason = progress.choices[0].end = "length"
            return

        def check() -> None:
            watch.check()
            progress.answer.check()

        generations: list[Generation] = []
        try:
            # (11) engine: ids to its process
            for sampling in plan.samplings():
                generation = self.engine.submit(plan.prompt_ids, sampling, call.account_id, plan.card, plan.num_public)
                generations.append(generation)  # at once, so that it is cancelled if the next one is refused
            # (12) delta: ids -> text -> stop strings -> delta
            for event in advance_all(progress.choices, generations, self.options.poll_s, check):
                if progress.first_token_at is None and progress.num_completion_tokens:
                    progress.first_token_at = self.clock()
                yield event
        finally:
            for generation in generations:
                generation.cancel()
        progress.reason = progress.choices[0].end or "stop"

    def _keep(self, plan: Plan, progress: _Progress, *, complete: bool) -> None:
        """Store the new turns and the answer."""
        if plan.conversation_id is not None:
            turns = [*plan.turns, Message("assistant", progress.text)]
            self.conversations.append(progress.answer, turns, complete=complete)

    def _keep_partial(self, plan: Plan, progress: _Progress) -> None:
        """Store a partial answer, if it has any text."""
        if progress.text:
            with suppress(StoreUnavailable):  # the caller gets the error that ended the request
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
    """The conversation's text; the log decides by its level whether to record it."""
    said = [(message.role, with_calls(message)) for message in turns]
    return "\n".join(f"{role}: {text}" for role, text in [*said, ("assistant", completion)])
