"""Messages to prompt ids, by the model's own chat template; a caller's text can never become a role boundary.

The template is a program in Jinja. It runs in the sandbox that Hugging Face uses, so it renders what the model was
trained on. Knows nothing about requests or the engine.

How special tokens in a caller's text stay text: before rendering, each of them is broken in two by a mark that nobody
can guess. So after rendering the only whole special tokens are the template's own. Where no mark came out (almost
always) the text is encoded as it stands. Where one did, the text is cut at the template's special tokens, which become
their ids; what lies between loses its marks and is encoded by a tokenizer that knows no special token at all.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

from chatsvc.chat.detokenize import Detokenizer
from chatsvc.chat.types import Message
from chatsvc.errors import InvalidRequest, ModelRefused
from chatsvc.models.card import ModelCard

# A template that renders more than this from a bounded body is broken.
MAX_RENDERED_CHARS = 4_000_000


class PromptRenderer:
    """Renders and encodes for one model. Thread-safe; make one for each card."""

    def __init__(self, card: ModelCard, *, new_mark: Callable[[], str] = lambda: secrets.token_hex(16)) -> None:
        self.card = card
        self._new_mark = new_mark
        self._template = _compile(card.chat_template)
        self._tokenizer = Tokenizer.from_buffer(card.tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._added = {token.content: (id_, token) for id_, token in self._tokenizer.get_added_tokens_decoder().items()}
        self._special_ids = {id_ for id_, token in self._added.values() if token.special}
        # A token that is no role boundary and that the template itself looks for (``</think>``) must reach it whole.
        guarded = [t for t, (_, token) in self._added.items() if token.special or t not in card.chat_template]
        self._guarded = _any_of(guarded)
        self._any_added = _any_of(self._added)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the conversation, ending where the assistant's turn begins.

        Raises:
            InvalidRequest: the template does not take such a conversation.
        """
        mark = self._new_mark()
        guarded = [{"role": m.role, "content": self._break_special(m.content, mark)} for m in messages]
        return self._encode(self._render(guarded), mark)

    def beginning(self, operators: str) -> list[int]:
        """What prompts begin with before the first word of a caller, when the operator's text is this.

        That is what conversations have in common that have no word in common, short and longer ones: templates may put
        the operator's text behind earlier turns.

        Raises:
            InvalidRequest: the template does not take such conversations.
        """
        conversations = []
        for text in ("a", "1 2"):  # neither alike nor of one length
            question, answer = Message("user", text), Message("assistant", text)
            conversations += [[question], [question, answer, question]]
        prompts = [self.prompt_ids(with_system(operators, messages)) for messages in conversations]
        return prompts[0][: min(_num_alike(prompts[0], other) for other in prompts[1:])]

    def plain_ids(self, operators: str, prompt: str | Sequence[int]) -> list[int]:
        """The ids of a prompt without roles: the operator's text, if there is one, then the caller's.

        A text is a text: nothing in it becomes a special token. Ids are taken as they are, special ones too: who sends
        them has made the prompt token by token.

        Raises:
            InvalidRequest: an id that no token has, or a text of no token.
        """
        if isinstance(prompt, str):
            text = f"{operators}\n\n{prompt}" if operators else prompt
            ids: list[int] = self._plain.encode(text).ids
        else:
            self.text_of(prompt)
            ids = [*(self._plain.encode(f"{operators}\n\n").ids if operators else ()), *prompt]
        if not ids:
            raise InvalidRequest("prompt: there is not one token in it.", param="prompt", code="invalid_value")
        return ids

    def text_of(self, prompt: str | Sequence[int]) -> str:
        """What a prompt says; the texts of special tokens are shown.

        Raises:
            InvalidRequest: an id that no token has.
        """
        if isinstance(prompt, str):
            return prompt
        if any(self._tokenizer.id_to_token(id_) is None for id_ in set(prompt)):
            raise InvalidRequest("prompt: the model has no token of such an id.", param="prompt", code="invalid_value")
        text: str = self._tokenizer.decode(list(prompt), skip_special_tokens=False)
        return text

    @functools.cached_property
    def _plain(self) -> Tokenizer:
        """Knows no special token. Made when first needed: it is as large as the other one, and most never need it."""
        return _without_added_tokens(self._tokenizer)

    def detokenizer(self) -> Detokenizer:
        """For the ids of one completion."""
        return Detokenizer(self._tokenizer)

    def _break_special(self, text: str, mark: str) -> str:
        return self._guarded.sub(lambda found: found[0][:1] + mark + found[0][1:], text)

    def _render(self, messages: list[dict[str, str]]) -> str:
        parts: list[str] = []
        num_chars = 0
        try:
            for part in self._template.generate(
                messages=messages,
                add_generation_prompt=True,
                bos_token=self.card.bos_token,
                eos_token=self.card.eos_token,
            ):
                num_chars += len(part)
                if num_chars > MAX_RENDERED_CHARS:
                    raise InvalidRequest("The conversation is too long.", param="messages")
                parts.append(part)
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                "The model's chat template does not take such a sequence of roles.", param="messages"
            ) from error
        return "".join(parts)

    def _encode(self, text: str, mark: str) -> list[int]:
        if mark not in text:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            if sum(id_ in self._special_ids for id_ in ids) == self._num_special(text):
                return ids
            # A special token came into being by normalisation (a full-width form, say): only the careful way is safe.
        return self._encode_between_specials(text, mark)

    def _num_special(self, text: str) -> int:
        return sum(self._added[found[0]][1].special for found in self._any_added.finditer(text))

    def _encode_between_specials(self, text: str, mark: str) -> list[int]:
        ids: list[int] = []
        start = 0
        strip_left = False
        for found in [*self._any_added.finditer(text), None]:
            between = text[start : found.start() if found else len(text)].replace(mark, "")
            token: AddedToken | None = None
            if found:
                id_, token = self._added[found[0]]
                start = found.end()
            between = between.lstrip() if strip_left else between
            between = between.rstrip() if token is not None and token.lstrip else between
            ids += self._plain.encode(between, add_special_tokens=False).ids
            if token is not None:
                ids.append(id_)
                strip_left = token.rstrip
        return ids


def with_system(operators: str, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with one system message first: the operator's text, then the caller's.

    Templates differ in what they do with a second system message, so the leading ones become one. The operator's text
    stands first and a caller has no way to leave it out.
    """
    num_leading = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    texts = [operators, *(message.content for message in messages[:num_leading])]
    system = "\n\n".join(text for text in texts if text)
    rest = tuple(messages[num_leading:])
    return (Message("system", system), *rest) if system else rest


def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = time.strftime
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelRefused("The model's chat template is not valid Jinja; import the model again.") from error


def _tojson(value: Any, *, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(description))


def _any_of(texts: Sequence[str] | dict[str, Any]) -> re.Pattern[str]:
    """Matches any of the texts, the longest first; where there are none, nothing."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


def _num_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
