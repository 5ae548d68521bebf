"""Renders a chat template on small conversations to learn what it writes and whether it supports tools.

Knows nothing about tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from chatsvc.errors import InvalidRequest, ModelRefused, OperatorError
from chatsvc.models.text.template_process import Render, TemplateProcess

# Words that no template writes by itself.
_CALL_WORDS = ("probename", "probeargument", "proberesult")
_WORDS = ("probequestion", "probeanswer", "probesystem", *_CALL_WORDS)
_ANY_WORD = re.compile("|".join(_WORDS))
_USER = {"role": "user", "content": _WORDS[0]}
_ANSWER = {"role": "assistant", "content": _WORDS[1]}
_SYSTEM = {"role": "system", "content": _WORDS[2]}
# Every template must accept these two; some refuse the two below.
_PLAIN = ([_USER], [_USER, _ANSWER, _USER])
_WITH_SYSTEM = [_SYSTEM, _USER, _ANSWER, _USER]
_WITH_TOOLS: list[dict[str, Any]] = [
    _USER,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "probecall",  # nine characters, as Mistral's templates want them
                "type": "function",
                "function": {"name": _CALL_WORDS[0], "arguments": {"x": _CALL_WORDS[1]}},
            }
        ],
    },
    {"role": "tool", "content": _CALL_WORDS[2], "tool_call_id": "probecall", "name": _CALL_WORDS[0]},
]


@dataclass(frozen=True, slots=True)
class ProbedTemplate:
    """What the probes showed.

    Attributes:
        constants: every string constant of the template.
        written: the rendered texts.
        knows_tools: it renders an assistant's calls and a tool's answer.
    """

    constants: tuple[str, ...]
    written: tuple[str, ...]
    knows_tools: bool

    @property
    def texts(self) -> list[str]:
        """Constants, and the rendered texts without the probes' words."""
        return [*self.constants, *(part for text in self.written for part in _ANY_WORD.split(text))]

    def joins_markers(self, markers: Iterable[str]) -> bool:
        """Whether template and caller's text may form a marker together (``'[' + text``)."""
        starts = {marker[:length] for marker in markers for length in range(1, len(marker))}
        ends = {marker[length:] for marker in markers for length in range(1, len(marker))}
        longest = max(map(len, starts), default=0)
        return any(
            any(before[-length:] in starts or after[:length] in ends for length in range(1, longest + 1))
            for text in self.written
            for before, after in _around(text)
        )


def _around(text: str) -> Iterator[tuple[str, str]]:
    """The text before and behind each probe word."""
    for found in _ANY_WORD.finditer(text):
        yield text[: found.start()], text[found.end() :]


def probe(templates: TemplateProcess, template: Render) -> ProbedTemplate:
    """Probe a template; ``template.messages`` is ignored. One that refuses every probe yields only constants.

    Raises:
        ModelRefused: it is not valid Jinja.
        InvalidRequest: even parsing it exceeds the limits.
    """
    constants = templates.constants(template.source)
    written = [_rendered(templates, template, messages) for messages in _PLAIN[:1]]
    if written != [""]:  # else each further probe may run into the time limit
        others = [*_PLAIN[1:], _WITH_SYSTEM, _WITH_TOOLS]
        written += [_rendered(templates, template, messages) for messages in others]
    tools_are_named = any("tool" in text for text in constants) or "tool_calls" in template.source
    knows_tools = tools_are_named and all(word in written[-1] for word in _CALL_WORDS)
    return ProbedTemplate(tuple(constants), tuple(written), knows_tools)


def check_template(source: str, bos_token: str, eos_token: str) -> None:
    """Compile a template and render conversations with it, with and without a system message.

    A template may refuse a system message (Gemma's do); requests with one then get its message.

    Raises:
        OperatorError: it cannot be used; the message says why.
    """
    templates = TemplateProcess()
    template = Render(source=source, messages=[], bos_token=bos_token, eos_token=eos_token)
    try:
        for messages in _PLAIN:
            template.messages = messages
            templates.render(template)
    except ModelRefused as error:
        raise OperatorError(
            "the model's chat template is not valid Jinja; put a mended chat_template.jinja beside its weights"
        ) from error
    except InvalidRequest as error:
        raise OperatorError(
            f"the model's chat template cannot be used; put a mended chat_template.jinja beside its weights. "
            f"({error.message})"
        ) from error
    finally:
        templates.close()


def _rendered(templates: TemplateProcess, template: Render, messages: Sequence[dict[str, Any]]) -> str:
    template.messages = list(messages)
    try:
        return templates.render(template)
    except InvalidRequest:
        return ""
