"""Messages to prompt ids, by the model's own chat template; a caller's text can never become a role boundary.

Knows nothing about requests or the engine. How markers (special tokens, and whatever else a template writes) in a
caller's text stay text: before rendering, the first character of each is replaced by a stand-in that nobody can guess.
So after rendering the only whole markers are the template's own. Where no stand-in came out (almost always) the text is
encoded as it stands. Where one did, the template's markers are replaced by aliases that nobody can guess either, the
stand-ins by what they stand for, and a tokenizer that knows the markers by their aliases only encodes the whole.
"""

from __future__ import annotations

import functools
import itertools
import secrets
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from chatsvc.chat.detokenize import Detokenizer
from chatsvc.chat.token_texts import TokenTexts
from chatsvc.chat.tool_turns import as_text, for_template
from chatsvc.chat.types import Message
from chatsvc.errors import InvalidRequest
from chatsvc.models.card import ModelCard
from chatsvc.models.text.markers import SeparateTokenizer, declare, markers_of
from chatsvc.models.text.probing import probe
from chatsvc.models.text.template import MarkerFinder, mended
from chatsvc.models.text.template_process import Render, TemplateProcess

_MARK_DIGITS = 32


class PromptRenderer:
    """Renders and encodes for one model. Thread-safe; make one for each card.

    Raises:
        ModelRefused: the card's template is not valid Jinja.
        InvalidRequest: its template takes more than its limits before it has seen a message.
    """

    def __init__(self, card: ModelCard, templates: TemplateProcess) -> None:
        self.card = card
        self._templates = templates
        self._tokenizer = Tokenizer.from_buffer(card.tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        probed = probe(templates, self._render_of([]))
        self._knows_tools = probed.knows_tools
        ends = [self._tokenizer.id_to_token(id_) or "" for id_ in card.eos_token_ids]
        stated = [card.bos_token, card.eos_token, *ends]
        self._markers = markers_of(self._tokenizer, probed.texts, stated)
        self._marker_ids = frozenset(self._markers.values())
        declare(self._tokenizer, self._markers)
        self._finder = MarkerFinder(self._markers)
        self._joins_markers = probed.joins_markers(self._markers)
        self._looked_for = tuple(text for text in self._markers if text in card.chat_template)

    @property
    def num_ids(self) -> int:
        """Token ids that there are, from 0 on."""
        return int(self._tokenizer.get_vocab_size())

    def prompt_ids(
        self, messages: Sequence[Message], *, opens_answer: bool = True, continues_final: bool = False
    ) -> list[int]:
        """The ids of the conversation, ending where the assistant's turn begins.

        Args:
            messages: the turns.
            opens_answer: False: ending with the last turn.
            continues_final: ending inside the last turn, which the answer goes on with.

        Raises:
            InvalidRequest: the template does not take such a conversation.
        """
        mark, end = _random_digits(), _random_digits()
        turns = messages if self._knows_tools else as_text(messages)
        guarded = [for_template(turn, lambda text: self._guarded(text, mark)) for turn in turns]
        if continues_final:
            guarded[-1]["content"] = f"{guarded[-1].get('content') or ''}{end}"
        text = self._templates.render(self._render_of(guarded, mark, opens_answer=opens_answer and not continues_final))
        if continues_final:
            text, found, _ = text.rpartition(end)
            if not found:
                raise InvalidRequest(
                    "continue_final_message: the model's template does not show the last message.",
                    param="continue_final_message",
                )
        return self._encode(text, mark)

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
            ids = self._text_ids(text)
        else:
            self.text_of(prompt)
            ids = [*(self._text_ids(f"{operators}\n\n") if operators else ()), *prompt]
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
    def _separate(self) -> SeparateTokenizer:
        """Made when first needed: it is as large as the other one, and most never need it."""
        return SeparateTokenizer(self._tokenizer, self._markers)

    @functools.cached_property
    def token_texts(self) -> TokenTexts:
        """Of single ids; made when first needed."""
        return TokenTexts(self._tokenizer)

    def detokenizer(self) -> Detokenizer:
        """For the ids of one completion."""
        return Detokenizer(self._tokenizer)

    def _text_ids(self, text: str) -> list[int]:
        """A text that begins a prompt, behind what the tokenizer puts before every text; no marker is in it."""
        begun: list[int] = self._tokenizer.encode("", add_special_tokens=True).ids
        return [*begun, *self._separate.encode(text)]

    def _render_of(self, messages: list[dict[str, Any]], mark: str = "", *, opens_answer: bool = True) -> Render:
        return Render(
            source=self.card.chat_template,
            messages=messages,
            mark=mark,
            markers=self._looked_for if mark else (),
            bos_token=self.card.bos_token,
            eos_token=self.card.eos_token,
            opens_answer=opens_answer,
        )

    def _guarded(self, text: str, mark: str) -> str:
        broken = self._finder.broken(text, mark)
        if not self._joins_markers:
            return broken
        # An empty stand-in at both ends, inside the white space that a template may strip.
        core = broken.strip()
        start = broken.index(core)
        return f"{broken[:start]}{mark}:;{core}{mark}:;{broken[start + len(core) :]}"

    def _encode(self, text: str, mark: str) -> list[int]:
        if mark not in text:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            num_markers = sum(1 for _ in self._finder.any_marker.finditer(text))
            if sum(id_ in self._marker_ids for id_ in ids) == num_markers:
                return ids
            # A marker came into being by merging or normalisation (a full-width form, say).
        aliases = self._separate.aliases
        aliased = self._finder.any_marker.sub(lambda found: aliases[found[0]], text)
        return self._separate.encode(mended(aliased, mark))


def _random_digits() -> str:
    return f"{secrets.randbelow(10**_MARK_DIGITS):0{_MARK_DIGITS}}"


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


def _num_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
