"""Messages to prompt ids, by the model's chat template; a caller's text can never become a role boundary.

How markers (special tokens, and whatever else a template writes) in a caller's text stay text:

1. Before rendering, the first character of each is replaced by an unguessable stand-in. After rendering, the only
   intact markers are the template's.
2. If the output has no stand-in (almost always), the text is encoded as it is.
3. Otherwise the template's markers are replaced by unguessable aliases and the stand-ins by their characters; a
   tokenizer that knows the markers only by their aliases encodes the result.

Knows nothing about requests or the engine.
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
    """Renders and encodes the prompts of one model. Thread-safe.

    Raises:
        ModelRefused: the card's template is not valid Jinja.
        InvalidRequest: the template exceeds its limits even without a message.
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
        """Size of the vocabulary."""
        return int(self._tokenizer.get_vocab_size())

    def prompt_ids(
        self, messages: Sequence[Message], *, opens_answer: bool = True, continues_final: bool = False
    ) -> list[int]:
        """The ids of a conversation, up to the beginning of the assistant's turn.

        Args:
            messages: the turns.
            opens_answer: False: end after the last turn.
            continues_final: end inside the last turn, so that the answer continues it.

        Raises:
            InvalidRequest: the template refuses the conversation.
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

    def public_prefix(self, operator_text: str) -> list[int]:
        """The public prompt prefix: the ids that all prompts with this operator's text begin with.

        It is the common beginning of short and longer conversations that have no word in common. Longer ones are
        needed because a template may put the operator's text after earlier turns.

        Raises:
            InvalidRequest: the template refuses these conversations.
        """
        conversations = []
        for text in ("a", "1 2"):  # with nothing in common, also not in length
            question, answer = Message("user", text), Message("assistant", text)
            conversations += [[question], [question, answer, question]]
        prompts = [self.prompt_ids(with_system(operator_text, messages)) for messages in conversations]
        return prompts[0][: min(_common_length(prompts[0], other) for other in prompts[1:])]

    def plain_ids(self, operator_text: str, prompt: str | Sequence[int]) -> list[int]:
        """The ids of a prompt without roles: the operator's text, if any, then the caller's.

        Nothing in a text becomes a special token. Ids are taken as they are, special ones too: a caller who sends ids
        chooses each token.

        Raises:
            InvalidRequest: an unknown id, or a text without a token.
        """
        if isinstance(prompt, str):
            text = f"{operator_text}\n\n{prompt}" if operator_text else prompt
            ids = self._text_ids(text)
        else:
            self.text_of(prompt)
            ids = [*(self._text_ids(f"{operator_text}\n\n") if operator_text else ()), *prompt]
        if not ids:
            raise InvalidRequest("prompt: it contains no token.", param="prompt", code="invalid_value")
        return ids

    def text_of(self, prompt: str | Sequence[int]) -> str:
        """The text of a prompt, including special tokens.

        Raises:
            InvalidRequest: an unknown id.
        """
        if isinstance(prompt, str):
            return prompt
        if any(self._tokenizer.id_to_token(id_) is None for id_ in set(prompt)):
            raise InvalidRequest(
                "prompt: the model has no token with such an id.", param="prompt", code="invalid_value"
            )
        text: str = self._tokenizer.decode(list(prompt), skip_special_tokens=False)
        return text

    @functools.cached_property
    def _separate(self) -> SeparateTokenizer:
        """Made when first needed: it takes as much memory as the other tokenizer, and is rarely needed."""
        return SeparateTokenizer(self._tokenizer, self._markers)

    @functools.cached_property
    def token_texts(self) -> TokenTexts:
        """The texts of single tokens; made when first needed."""
        return TokenTexts(self._tokenizer)

    def detokenizer(self) -> Detokenizer:
        """A new detokenizer for one completion."""
        return Detokenizer(self._tokenizer)

    def _text_ids(self, text: str) -> list[int]:
        """The ids of a text that begins a prompt, with what the tokenizer puts before every text. No markers."""
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
        # An empty stand-in at both ends, inside the white space, which a template may strip.
        core = broken.strip()
        start = broken.index(core)
        return f"{broken[:start]}{mark}:;{core}{mark}:;{broken[start + len(core) :]}"

    def _encode(self, text: str, mark: str) -> list[int]:
        if mark not in text:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            num_markers = sum(1 for _ in self._finder.any_marker.finditer(text))
            if sum(id_ in self._marker_ids for id_ in ids) == num_markers:
                return ids
            # A marker arose by merging or normalisation (of a full-width form, for example).
        aliases = self._separate.aliases
        aliased = self._finder.any_marker.sub(lambda found: aliases[found[0]], text)
        return self._separate.encode(mended(aliased, mark))


def _random_digits() -> str:
    return f"{secrets.randbelow(10**_MARK_DIGITS):0{_MARK_DIGITS}}"


def with_system(operator_text: str, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with a single system message first: the operator's text, then the caller's.

    All leading system messages are joined, because templates differ in what they do with a second one. The operator's
    text comes first, and a caller cannot leave it out.
    """
    num_leading = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    texts = [operator_text, *(message.content for message in messages[:num_leading])]
    system = "\n\n".join(text for text in texts if text)
    rest = tuple(messages[num_leading:])
    return (Message("system", system), *rest) if system else rest


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the common beginning."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
