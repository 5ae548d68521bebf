"""The service against the real engine's loop with a scripted runner: order, records, refusals, endings."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import msgspec
import pytest

from chatsvc.app import create_app, running_in
from chatsvc.audit.facts import Facts
from chatsvc.chat.service import Call, ServiceOptions
from chatsvc.chat.types import ChatRequest, Delta, Finish, Message, SamplingRequest, Start, Waiting
from chatsvc.engine.protocol import NOT_FINITE
from chatsvc.errors import (
    AuditUnavailable,
    AuthenticationFailed,
    ClientGone,
    ContextLengthExceeded,
    ConversationDeleted,
    DeadlineExceeded,
    Draining,
    EngineUnavailable,
    LimitExceeded,
    ModelNotFound,
    NotFound,
    Overloaded,
)
from chatsvc.guard.gate import Credentials
from chatsvc.guard.principal import scope
from chatsvc.models.card import ModelCard
from chatsvc.settings.load import load

from .conftest import Script
from .test_prompt import CHATML, byte_tokenizer, card

HELLO = byte_tokenizer().encode("Hello, 世界!", add_special_tokens=False).ids


class Place:
    """An application in front of a scripted engine, and its one account."""

    def __init__(self, home, script, start_engine, environment, template=CHATML):
        self.home, self.script = home, script
        self.socket = home / "run" / "engine.sock"
        self.card: ModelCard = dataclasses_replace(card(template), context_length=200)
        self.start_engine = start_engine
        self.stop_engine = start_engine(self.socket, self.card, script)
        given = {"CHATSVC_HOME": str(home), "CHATSVC_GUARD__ALLOWED_NETWORKS": '["127.0.0.1"]', **environment}
        given |= {"CHATSVC_ACCOUNTS__ARGON2_MEMORY_KIB": "8192", "CHATSVC_ACCOUNTS__ARGON2_TIME_COST": "1"}
        self.app = create_app(load({"CHATSVC_ENGINE__MAX_NUM_SEQS": "2", **given}))
        self.running = running_in(self.app)
        self.running.guard.accounts.add("alice", "alice's long password", ["user"])
        http = self.app.test_client()
        token = http.post("/login", json={"username": "alice", "password": "alice's long password"}).json[
            "access_token"
        ]

        self.headers = {"Authorization": f"Bearer {token}"}
        with self.app.app_context():
            given = Credentials(authorization=[f"Bearer {token}"])
            self.principal = self.running.gate.authenticate(given, scope("chat"))
        self.service = self.running.service

    def call(self, is_gone=lambda: False):
        facts = Facts(request_id="r", action="chat.generate", actor=self.principal.account_id)
        return Call(self.running.gate.admit(self.principal), self.principal.account_id, facts, is_gone)

    def records(self):
        """What the log holds about generations, after closing it."""
        self.running.audit.close()
        text = "".join(
            path.read_text()
            for path in sorted((self.home / "audit").rglob("*"))
            if path.is_file() and path.suffix != ".key"
        )
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [record for record in found if record.get("action") == "chat.generate"]

    def left_today(self):
        return self.running.gate.standing(self.principal)[1]["tokens_per_day"]


def dataclasses_replace(struct, **changes):

    return msgspec.structs.replace(struct, **changes)


def ask(text="Hi", **changes):
    request = ChatRequest(messages=(Message("user", text),), max_tokens=50, sampling=SamplingRequest(temperature=0))
    return dataclasses.replace(request, **changes)


@pytest.fixture
def make_place(tmp_path, start_engine, wait_until):
    places = []

    def make(script=None, template=CHATML, **environment):
        place = Place(tmp_path, script or Script(ids=HELLO), start_engine, environment, template)
        places.append(place)
        wait_until(lambda: place.running.engine.status().ready)
        return place

    yield make
    for place in places:
        place.running.close()


@pytest.fixture
def place(make_place):
    return make_place()


def begin(events):
    """Take what comes before the first word: the request is admitted, and has its slot or waits for one."""
    assert isinstance(next(events), Start)
    return next(events)


def is_free(place):
    return place.running.queue.num_running == 0 and place.running.queue.num_waiting == 0 and not place.script.running


def test_a_prompt_has_the_whole_beginning_or_none_of_it(make_place):
    """Where a caller's words part from it would be a name in the cache that another could ask for."""
    place = make_place(CHATSVC_CHAT__SYSTEM_PROMPT="Be brief.")
    conversations = [
        (Message("user", "Hi"),),
        (Message("user", ""),),
        (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "And?")),
        (Message("system", "Be kind."), Message("user", "Hi")),
        (Message("assistant", "Hello"), Message("user", "Hi")),
    ]
    for messages in conversations:
        list(place.service.stream(place.call(), ask(messages=messages)))
    tokenizer = byte_tokenizer()
    texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids in place.script.public]
    assert texts == ["<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"] * 3 + ["", ""]


@pytest.mark.parametrize("stumbles", ["raise_exception('no')", "1 / 0"])
def test_where_a_template_takes_no_conversation_a_prompt_is_its_callers_from_the_first_id(make_place, stumbles):
    place = make_place(template="{{ " + stumbles + " if messages|length > 1 }}{{ messages[0].content }}")
    list(place.service.stream(place.call(), ask()))
    assert place.script.public == [[]]


def test_a_completion_is_its_pieces_and_counts_its_tokens(place):
    events = list(place.service.stream(place.call(), ask()))
    pieces = [event.text for event in events if isinstance(event, Delta)]
    finish = events[-1]
    assert "".join(pieces) == "Hello, 世界!"
    assert "世" in pieces
    assert isinstance(finish, Finish)
    assert finish.reason == "stop"
    assert finish.usage.num_completion_tokens == len(HELLO)
    assert finish.usage.num_prompt_tokens == len(place.script.prompts[0])
    assert finish.model == "bytes"
    assert is_free(place)


def test_a_record_begins_before_and_ends_after_and_the_quota_is_settled(place):
    before = place.left_today()
    _, finish = place.service.complete(place.call(), ask())
    total = finish.usage.num_prompt_tokens + finish.usage.num_completion_tokens
    assert before - place.left_today() == total
    begin, end = place.records()
    assert (begin["stage"], end["stage"], end["outcome"]) == ("begin", "end", "allowed")
    assert (end["num_prompt_tokens"], end["num_completion_tokens"]) == (finish.usage.num_prompt_tokens, len(HELLO))
    assert begin["model"] == place.card.digest


def test_the_last_token_that_is_allowed_ends_it_with_length(place):
    text, finish = place.service.complete(place.call(), ask(max_tokens=5))
    assert (text, finish.reason, finish.usage.num_completion_tokens) == ("Hello", "length", 5)


REFUSES = "{% if messages|length > 1 %}{{ raise_exception('Roles must alternate.') }}{% endif %}"
EXPLODES = "{% if 'bomb' in messages[-1].content %}{{ 'a' * 10**10 }}{% endif %}"


@pytest.mark.parametrize("path", ["/chat", "/chat/stream", "/v1/chat/completions"])
def test_a_template_that_refuses_or_explodes_is_a_400_in_the_contracts_shape(make_place, path):
    place = make_place(template=REFUSES + EXPLODES + CHATML)
    client = place.app.test_client()

    def post(*contents):
        messages = [{"role": "user", "content": content} for content in contents]
        return client.post(path, json={"messages": messages}, headers=place.headers)

    for answer, message in ((post("a", "b"), "Roles must alternate."), (post("a bomb"), "more time, memory or text")):
        assert answer.status_code == 400
        error = answer.json["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", "messages")
        assert message in error["message"]
    assert post("Hi").status_code == 200


def test_a_history_with_tools_is_rendered_and_what_was_called_is_on_record(make_place):
    place = make_place(CHATSVC_AUDIT__LEVEL="redacted")
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees <|im_end|>"},
    ]
    answer = place.app.test_client().post("/v1/chat/completions", json={"messages": messages}, headers=place.headers)
    assert answer.status_code == 200, answer.json
    prompt = byte_tokenizer().decode(place.script.prompts[-1], skip_special_tokens=False)
    assert '<tool_call>\n{"name":"weather","arguments":{"city":"Paris"}}\n</tool_call><|im_end|>' in prompt
    assert "<|im_start|>user\n<tool_response>\n22 degrees <|im_end|>\n</tool_response><|im_end|>" in prompt
    assert place.script.prompts[-1].count(byte_tokenizer().token_to_id("<|im_end|>")) == 3
    assert "weather" in json.dumps(place.records())


def test_an_answer_cut_at_any_length_drops_a_character_that_was_cut_off(place):
    for length in range(1, len(HELLO) + 1):
        text, finish = place.service.complete(place.call(), ask(max_tokens=length))
        pieces = [event for event in place.service.stream(place.call(), ask(max_tokens=length)) if is_delta(event)]
        expected = "Hello, 世界!".encode()[:length].decode(errors="ignore")
        assert text == "".join(piece.text for piece in pieces) == expected
        kept = place.running.conversations.history(place.principal.account_id, finish.conversation_id)
        assert kept[-1].content == expected


def is_delta(event):
    return isinstance(event, Delta)


def test_a_stop_string_ends_it_and_the_engine_is_told(place, wait_until):
    place.script.step_s = 0.02
    text, finish = place.service.complete(place.call(), ask(stop=(", 世",)))
    assert (text, finish.reason) == ("Hello", "stop")
    assert finish.usage.num_completion_tokens == len("Hello, 世".encode())
    wait_until(lambda: is_free(place))


def test_a_prompt_of_the_context_fits_and_one_token_more_is_refused(place):
    length = place.card.context_length
    rest = len(place.running.service.planner.plan(place.principal.account_id, ask("")).prompt_ids)
    _, finish = place.service.complete(place.call(), ask("x" * (length - rest - 1), max_tokens=None))
    assert (finish.reason, finish.usage.num_completion_tokens) == ("length", 1)
    for request in (ask("x" * (length - rest), max_tokens=None), ask("x", max_tokens=length - rest), ask("x" * 1000)):
        with pytest.raises(ContextLengthExceeded):
            place.service.complete(place.call(), request)
    assert is_free(place)


def test_without_max_tokens_the_default_is_cut_to_what_the_context_has_room_for(place):
    plan = place.running.service.planner.plan(place.principal.account_id, ask(max_tokens=None))
    assert plan.cost_tokens == place.card.context_length


def test_another_model_or_anothers_conversation_is_not_found(place):
    with pytest.raises(ModelNotFound):
        place.service.complete(place.call(), ask(model="gpt-4o"))
    with pytest.raises(NotFound):
        place.service.complete(place.call(), ask(conversation_id="f" * 32))
    assert is_free(place)


def test_the_operators_text_comes_first_whatever_the_caller_sends(make_place):
    place = make_place(CHATSVC_CHAT__SYSTEM_PROMPT="Operator.")
    messages = (Message("system", "Caller."), Message("user", "Hi"))
    place.service.complete(place.call(), ask(messages=messages))
    place.service.complete(place.call(), ask())
    texts = [byte_tokenizer().decode(ids, skip_special_tokens=False) for ids in place.script.prompts]
    assert texts[0].startswith("<|im_start|>system\nOperator.\n\nCaller.<|im_end|>")
    assert texts[1].startswith("<|im_start|>system\nOperator.<|im_end|>")


def test_a_conversation_goes_on_with_what_was_said(place):
    _, first = place.service.complete(place.call(), ask("one"))
    messages = (Message("system", "Short."), Message("user", "two"))
    _, second = place.service.complete(place.call(), ask(messages=messages, conversation_id=first.conversation_id))
    assert second.conversation_id == first.conversation_id
    text = byte_tokenizer().decode(place.script.prompts[1], skip_special_tokens=False)
    assert text.split("<|im_start|>")[1:4] == [
        "system\nShort.<|im_end|>\n",
        "user\none<|im_end|>\n",
        "assistant\nHello, 世界!<|im_end|>\n",
    ]
    _, turns = place.running.conversations.read(place.principal.account_id, first.conversation_id)
    assert [turn.message.content for turn in turns] == ["one", "Hello, 世界!", "two", "Hello, 世界!"]


def test_what_is_not_to_be_kept_is_in_no_conversation(place):
    _, finish = place.service.complete(place.call(), ask(keep=False))
    assert finish.conversation_id is None
    assert place.running.conversations.summaries(place.principal.account_id, limit=9, offset=0) == []


def test_a_client_that_leaves_is_cancelled_recorded_and_half_its_answer_is_kept(place, wait_until):
    place.script.step_s = 0.03
    gone = threading.Event()
    events = place.service.stream(place.call(gone.is_set), ask())
    assert any(isinstance(next(events), Delta) for _ in range(20))
    gone.set()
    with pytest.raises(ClientGone):
        list(events)
    wait_until(lambda: is_free(place))
    (kept,) = place.running.conversations.summaries(place.principal.account_id, limit=9, offset=0)
    _, turns = place.running.conversations.read(place.principal.account_id, kept.id)
    assert [turn.complete for turn in turns] == [True, False]
    assert "Hello, 世界!".startswith(turns[1].message.content)
    assert place.records()[-1]["outcome"] == "aborted"


def test_closing_the_iterator_does_the_same(place, wait_until):
    place.script.silent.set()
    events = place.service.stream(place.call(), ask())
    assert isinstance(begin(events), Waiting)
    events.close()
    wait_until(lambda: is_free(place))
    assert place.records()[-1]["outcome"] == "aborted"
    assert place.records()[-1]["num_completion_tokens"] == 0


@pytest.mark.parametrize("is_running", [True, False])
def test_deleting_the_conversation_cancels_what_is_answered_in_it(place, wait_until, is_running):
    _, finish = place.service.complete(place.call(), ask("one"))
    place.script.silent.set()
    others = [] if is_running else [place.service.stream(place.call(), ask()) for _ in range(2)]
    for events in others:
        begin(events)
    events = place.service.stream(place.call(), ask("two", conversation_id=finish.conversation_id))
    assert next(events).conversation_id == finish.conversation_id
    assert isinstance(next(events), Waiting)
    assert place.running.queue.num_waiting == (0 if is_running else 1)
    place.running.conversations.delete(place.principal.account_id, finish.conversation_id)
    with pytest.raises(ConversationDeleted):
        list(events)
    for events in others:
        events.close()
    wait_until(lambda: is_free(place))
    assert place.running.conversations.summaries(place.principal.account_id, limit=9, offset=0) == []
    if is_running:
        last = place.records()[-1]
        assert (last["outcome"], last["status"], last["reason"]) == ("aborted", 404, "conversation_deleted")


def test_a_conversation_is_deleted_by_the_id_of_its_first_answer_also_before_there_is_a_word(place):
    place.script.silent.set()
    events = place.service.stream(place.call(), ask())
    start = next(events)
    place.running.conversations.delete(place.principal.account_id, start.conversation_id)
    with pytest.raises(ConversationDeleted):
        list(events)
    assert place.running.conversations.summaries(place.principal.account_id, limit=9, offset=0) == []


def test_what_there_is_of_an_answer_is_kept_when_an_error_ends_it(make_place):
    place = make_place(Script(ids=HELLO[:5], end="error"))
    with pytest.raises(EngineUnavailable):
        place.service.complete(place.call(), ask())
    (kept,) = place.running.conversations.summaries(place.principal.account_id, limit=9, offset=0)
    _, turns = place.running.conversations.read(place.principal.account_id, kept.id)
    assert [(turn.message.content, turn.complete) for turn in turns] == [("Hi", True), ("Hello", False)]


def test_a_deadline_ends_it(place):
    place.script.silent.set()
    service = dataclasses.replace(place.service, options=ServiceOptions(deadline_s=0.3, poll_s=0.05))
    with pytest.raises(DeadlineExceeded):
        service.complete(place.call(), ask())
    record = place.records()[-1]
    assert (record["outcome"], record["reason"]) == ("error", "deadline_exceeded")


def test_a_revoked_session_ends_it(place):
    place.script.silent.set()
    events = place.service.stream(place.call(), ask())
    begin(events)
    assert place.app.test_client().post("/logout", headers=place.headers).status_code == 204
    with pytest.raises(AuthenticationFailed):
        list(events)
    assert is_free(place) or place.script.running


def test_a_drain_refuses_what_is_new_and_ends_what_runs_when_its_time_is_over(place):
    place.script.silent.set()
    events = place.service.stream(place.call(), ask())
    begin(events)
    place.running.drain.begin(0.3)
    place.running.drain.begin(1000)
    with pytest.raises(Draining):
        place.service.complete(place.call(), ask())
    next(events)
    with pytest.raises(Draining):
        list(events)


def test_a_log_that_cannot_be_written_refuses_before_anything_is_done(place):
    place.running.audit.close()
    with pytest.raises(AuditUnavailable):
        place.service.complete(place.call(), ask())
    assert place.script.prompts == []
    assert is_free(place)


def test_no_engine_refuses_at_once(place, wait_until):
    place.stop_engine()
    wait_until(lambda: not place.running.engine.status().ready)
    with pytest.raises((Draining, EngineUnavailable)):
        place.service.complete(place.call(), ask())


def test_an_engine_that_fails_on_a_sequence_is_an_error_of_ours(make_place):
    place = make_place(Script(ids=HELLO[:2], end="error"))
    with pytest.raises(EngineUnavailable):
        place.service.complete(place.call(), ask())
    assert place.records()[-1]["outcome"] == "error"


def test_a_prompt_whose_numbers_are_not_finite_is_a_500_and_an_event(make_place, events):
    place = make_place(Script(ids=HELLO[:2], end="error", detail=NOT_FINITE))
    client = place.app.test_client()
    answer = client.post("/chat", json={"query": "Hi"}, headers=place.headers)
    assert answer.status_code == 500
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert (answer.json["error"]["type"], answer.json["error"]["code"]) == ("server_error", "model_failed")
    stream = client.post("/chat/stream", json={"query": "Hi"}, headers=place.headers)
    assert events(stream.data)[-1] == ("error", answer.json)
    assert is_free(place)


def test_an_engine_that_ends_a_sequence_by_itself_is_draining(make_place):
    place = make_place(Script(ids=HELLO[:2], end="cancelled"))
    with pytest.raises(Draining):
        place.service.complete(place.call(), ask())
    assert place.records()[-1]["reason"] == "draining"


def test_a_client_that_leaves_before_the_first_word_leaves_no_conversation(place):
    place.script.silent.set()
    with pytest.raises(ClientGone):
        place.service.complete(place.call(lambda: bool(place.script.prompts)), ask())
    assert place.running.conversations.summaries(place.principal.account_id, limit=9, offset=0) == []


def test_an_engine_that_drains_under_a_sequence_ends_it(make_place):
    place = make_place(Script(ids=HELLO * 50, step_s=0.02))
    events = place.service.stream(place.call(), ask(max_tokens=100))
    while not isinstance(next(events), Delta):
        pass
    place.stop_engine()
    with pytest.raises((Draining, EngineUnavailable)):
        list(events)


def test_who_waits_is_told_the_position_and_comes_in_when_a_slot_is_free(place):
    place.script.silent.set()
    running = [place.service.stream(place.call(), ask()) for _ in range(2)]
    for events in running:
        begin(events)
    queued = place.service.stream(place.call(), ask())
    start = next(queued)  # before there is a slot
    waiting = next(queued)
    assert isinstance(waiting, Waiting)
    assert waiting.position == 1
    running[0].close()
    place.script.silent.clear()
    *_, finish = queued
    assert isinstance(finish, Finish)
    assert (finish.id, finish.conversation_id, finish.model) == (start.id, start.conversation_id, start.model)
    running[1].close()


def test_a_client_that_leaves_the_queue_frees_its_place(place):
    place.script.silent.set()
    running = [place.service.stream(place.call(), ask()) for _ in range(2)]
    for events in running:
        begin(events)
    queued = place.service.stream(place.call(lambda: True), ask())
    with pytest.raises(ClientGone):
        list(queued)
    assert place.running.queue.num_waiting == 0
    for events in running:
        events.close()


def test_a_full_room_and_an_empty_quota_refuse(make_place):
    place = make_place(
        CHATSVC_LIMITS__MAX_WAITING="1",
        CHATSVC_LIMITS__TOKENS_PER_DAY="320",
        CHATSVC_LIMITS__MAX_CONCURRENT_PER_PRINCIPAL="9",
    )
    place.script.silent.set()
    calls = [place.call() for _ in range(3)]
    with pytest.raises(Overloaded):
        place.call()
    for call in calls:
        call.admission.release()
    place.script.silent.clear()
    for _ in range(2):
        place.service.complete(place.call(), ask("x" * 50, max_tokens=90))
    with pytest.raises(LimitExceeded):
        place.service.complete(place.call(), ask("x" * 50, max_tokens=100))
    assert is_free(place)


def test_a_model_that_changes_between_plan_and_submit_costs_one_more_try(place, wait_until, start_engine):
    planner = place.running.service.planner
    old = planner.plan(place.principal.account_id, ask())
    script = Script(ids=HELLO)
    new_card = dataclasses_replace(place.card, name="new", digest="1" * 64)
    place.stop_engine()
    wait_until(lambda: not place.running.engine.status().ready)
    start_engine(place.socket, new_card, script)
    wait_until(lambda: place.running.engine.status().ready and place.running.engine.card().name == "new")

    class StalePlanner:
        plans = iter([old])

        def plan(self, account_id, request):
            return next(self.plans, None) or planner.plan(account_id, request)

    service = dataclasses.replace(place.service, planner=StalePlanner())
    text, _ = service.complete(place.call(), ask())
    assert text == "Hello, 世界!"


def test_what_was_measured_is_in_the_metrics(place, wait_until):
    place.service.complete(place.call(), ask())
    wait_until(lambda: place.running.engine.status().num_running == 0)  # the next heartbeat says so
    text = place.running.metrics.exposition().decode()
    assert f"chatsvc_generation_tokens_total {len(HELLO)}.0" in text
    assert 'chatsvc_request_success_total{finished_reason="stop"} 1.0' in text
    assert "chatsvc_time_to_first_token_seconds_count 1.0" in text
    assert "chatsvc_sequences_running 0.0" in text


def test_a_hundred_completions_at_once_all_come_out_whole(place):
    place.script.step_s = 0.0005
    results, started = [], time.monotonic()

    def run():
        try:
            results.append(place.service.complete(place.call(), ask())[0])
        except (Overloaded, LimitExceeded) as error:
            results.append(type(error).__name__)

    threads = [threading.Thread(target=run) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) <= {"Hello, 世界!", "Overloaded", "LimitExceeded"}
    assert results.count("Hello, 世界!") >= 2
    assert is_free(place)
    assert time.monotonic() - started < 60
