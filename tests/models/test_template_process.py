"""Chat templates in their child process: what transformers renders, and no more time or memory than is allowed."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from chatsvc.errors import InvalidRequest, ModelRefused, OperatorError, Unavailable
from chatsvc.models.text.probing import check_template
from chatsvc.models.text.template_process import Render, TemplateProcess, _answered, _Question

CASES = Path(__file__).parents[3] / "shared" / "cases"
CHAT = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": 'Hello <b> & "you" é\n'},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "What?"},
]
# Each uses what templates in the wild use.
TEMPLATES = {
    "generation": "{% for m in messages %}{{ m.role }}: {% generation %}\n  {{ m.content }}\n{% endgeneration %};{% endfor %}",
    "generation scope": "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}{{ x }}{{ loop.index }}"
    "{% endgeneration %}{{ x }}{% endfor %}",
    "tojson": "{{ messages|tojson }}{{ messages|tojson(indent=2) }}{{ messages[1]|tojson(ensure_ascii=true) }}"
    "{{ {'b': 1, 'a': [1.5, none, true]}|tojson(separators=(',', ':'), sort_keys=true) }}{{ 'é'|tojson(true, 4) }}",
    "date": "{{ strftime_now('%d %b %Y') }}{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}"
    "{% endif %}{{ date_string }}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content|trim }}"
    "{% if loop.index0 == 2 %}{% break %}{% endif %}{% endfor %}",
    "blocks are trimmed": "a\n   {% if true %}\n   b\n   {%- endif %}\n\n  {# note #}\nc  {{ '' }}\n",
    "variables": "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ bos_token }}{{ eos_token }}"
    "{{ pad_token is defined }}{{ tools is defined and tools }}",
    "namespace and macro": "{% macro say(m, sep='\n') %}{{ m.role ~ sep ~ m.content }}{% endmacro %}"
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{{ say(m) }}{% endfor %}{{ ns.last }}{{ messages[::-1][0].content }}{{ messages|length }}",
    "python's methods": "{{ messages[1].content.split('<b>')[-1].strip().upper() }}{{ messages[0].get('name', 'none') }}"
    "{{ messages[0].items()|list }}{{ '%s-%d' % ('a', 3) }}{{ 'x{}y'.format(1) }}{{ 'tool_calls' in messages[0] }}",
    "selecting": "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join('|') }}",
}
# Each took minutes or gigabytes in the process that rendered it.
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 10**9 }}",
    "a folded constant": "{% if 'a' * 10**10 %}{% endif %}",
    "doubled text": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubled list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "padding": "{{ 'a'|center(10**9) }}",
    "a format's width": "{{ '%1000000000d' % 1 }}",
    "a large number": "{{ 10 ** (10 ** 8) > 1 }}",
    "indented JSON": "{{ messages|tojson(indent=10**9) }}",
    "nested lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
    "endless output": "{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
    "deep brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def templates():
    """One child for all tests; bombs end it, and the next render starts another."""
    process = TemplateProcess()
    yield process
    process.close()


def render(templates: TemplateProcess, source: str, messages: list[dict[str, Any]] | None = None) -> str:
    return templates.render(Render(source=source, messages=messages or CHAT, bos_token="<s>", eos_token="</s>"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_transformers_does(templates, name):
    wanted, _ = render_jinja_template(
        [CHAT], chat_template=TEMPLATES[name], add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    assert render(templates, TEMPLATES[name]) == wanted[0]


@pytest.mark.skipif(not CASES.is_dir(), reason="shared/cases is not beside the repository")
@pytest.mark.parametrize("name", ["template-generation", "template-tojson-sep"])
def test_templates_that_were_refused_render_as_transformers_does(templates, name):
    source = json.loads((CASES / f"{name}.tokenizer_config.json").read_text())["chat_template"]
    wanted, _ = render_jinja_template([CHAT], chat_template=source, add_generation_prompt=True)
    assert render(templates, source) == wanted[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_soon_and_the_next_conversation_is_rendered(templates, name):
    with pytest.raises(InvalidRequest) as refused:
        render(templates, BOMBS[name])
    assert refused.value.param == "messages"
    assert render(templates, PLAIN, [{"role": "user", "content": "x"}]) == "user: x\n"


def test_the_child_has_limits_and_nothing_of_our_environment(templates, monkeypatch):
    monkeypatch.setenv("A_SECRET", "of the web process")
    fresh = TemplateProcess()
    render(fresh, PLAIN)
    pid = fresh._child._process.pid
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert f"Max address space         {256 << 20}" in limits
    assert "Max core file size        0" in limits
    environ = Path(f"/proc/{pid}/environ")
    assert not os.access(environ, os.R_OK) or environ.read_bytes() == b""
    fresh.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_child_that_was_killed_is_replaced(templates):
    render(templates, PLAIN)
    os.kill(templates._child._process.pid, signal.SIGKILL)
    assert render(templates, PLAIN).startswith("system: ")


def test_a_child_that_does_not_run_is_ended(templates):
    fresh = TemplateProcess()
    render(fresh, PLAIN)
    fresh._child._socket.settimeout(0.1)
    os.kill(fresh._child._process.pid, signal.SIGSTOP)
    assert render(fresh, PLAIN).startswith("system: ")
    fresh.close()
    with pytest.raises(Unavailable):
        render(fresh, PLAIN)


def test_what_a_terminal_sends_to_all_does_not_end_the_child(templates):
    render(templates, PLAIN)
    pid = templates._child._process.pid
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.05)
    render(templates, PLAIN)
    assert templates._child._process.pid == pid


def test_the_templates_own_words_reach_the_caller_on_one_bounded_line(templates):
    source = "{{ raise_exception('Roles must\n\x1b[31m alternate ' ~ 'x' * 9999) }}"
    with pytest.raises(InvalidRequest) as refused:
        render(templates, source)
    assert "refuses this conversation: Roles must [31m alternate xxx" in refused.value.message
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 400


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[99].role }}",
        "{{ 1 / 0 }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ nothing() }}",
        "{{ 1 + 'a' }}",
        r"{{ '\ud800' }}",
    ],
)
def test_any_exception_of_a_template_is_the_conversations(templates, source):
    with pytest.raises(InvalidRequest, match="does not take such a conversation"):
        render(templates, source)


@pytest.mark.parametrize("source", ["{% for %}", "{{", "{% generation %}x", "{{ x|nofilter }}"])
def test_what_is_not_jinja_is_refused(templates, source):
    with pytest.raises(ModelRefused):
        render(templates, source)
    with pytest.raises(OperatorError, match="not valid Jinja"):
        check_template(source, "", "")


@pytest.mark.parametrize("source", ["{{ raise_exception('never') }}", BOMBS["a long text"], "{{ messages[2].role }}"])
def test_a_template_that_fails_at_a_plain_conversation_is_refused_at_import(source):
    with pytest.raises(OperatorError, match=r"chat_template\.jinja"):
        check_template(source, "", "")


def test_a_template_without_system_messages_is_taken():
    check_template("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + PLAIN, "", "")


def test_a_template_finds_markers_in_a_guarded_text_as_in_any_other(templates):
    mark = "7" * 32
    source = (
        "{% set c = messages[0].content %}{{ '</think>' in c }}{{ c.startswith('<think>') }}{{ c == '<think>a</think>b' }}"
        "{{ c.split('</think>')[0].split('<think>')[-1] }}{{ c.split('</think>')[-1]|trim|replace('b', 'c') }}"
        "{{ c.replace('</think>', '!')|length > 32 }}"
    )
    content = f"{mark}:60;think>a{mark}:60;/think>b"
    question = Render(
        source=source, messages=[{"role": "assistant", "content": content}], mark=mark, markers=("<think>", "</think>")
    )
    assert templates.render(question) == "TrueTrueTrueacTrue"
    assert _answered(_Question(render=question)).texts == ["TrueTrueTrueacTrue"]  # where its lines can be measured


VALUES = (
    *(
        "'a'",
        "10**9",
        "[1]",
        "messages",
        "n.x",
        "n.x",
        "{'a': 1}",
        "(1,)",
        "99999",
        "-1",
        "1.5",
        "none",
        "'%s'",
        "'{}'",
    ),
    *("range(9999)", "m(3)", "lipsum", "cycler(1, 2)", "joiner()"),
)
FILTERS = (
    *(
        "attr",
        "batch",
        "center",
        "default",
        "dictsort",
        "first",
        "format",
        "groupby",
        "indent",
        "items",
        "join",
        "length",
    ),
    *("list", "map", "pprint", "replace", "reverse", "select", "slice", "sort", "string", "sum", "tojson", "truncate"),
    *("unique", "urlize", "wordwrap", "xmlattr"),
)
METHODS = ("format", "join", "ljust", "zfill", "replace", "split", "items", "expandtabs", "__class__", "mro")


def expression(draw: Random, depth: int = 0) -> str:
    kind = draw.randrange(9) if depth < 4 else 0

    def part() -> str:
        return expression(draw, depth + 1)

    if kind < 2:
        return draw.choice(VALUES)
    if kind < 4:
        return f"({part()} {draw.choice(['+', '-', '*', '**', '%', '//', '~', 'in', '==', '<'])} {part()})"
    if kind < 6:
        return f"({part()}|{draw.choice(FILTERS)}{f'({part()})' if draw.random() < 0.5 else ''})"
    return draw.choice([f"[{part()}, {part()}]", f"{part()}.{draw.choice(METHODS)}({part()})", f"{part()}[{part()}]"])


def test_any_program_ends_in_a_text_or_a_named_error(templates):
    draw = Random(1)
    texts = 0
    for _ in range(60):
        source = (
            "{% set n = namespace(x='ab') %}{% macro m(n) %}{{ n }}{% endmacro %}"
            f"{{% for i in range({draw.choice([3, 60, 99999])}) %}}{{% set n.x = {expression(draw)} %}}"
            f"{{{{ {expression(draw)} }}}}{{% endfor %}}"
        )
        with suppress(InvalidRequest, ModelRefused):
            render(templates, source)
            texts += 1
    assert 0 < texts < 60  # some of them are programs, and some are none
    assert render(templates, PLAIN).startswith("system: ")
