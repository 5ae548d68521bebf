"""From a request to what the engine is asked: history, system prompt, prompt ids, sampling, and what it may cost.

Knows nothing about admission, records or HTTP.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from chatsvc.chat.choices import Growing
from chatsvc.chat.completion import Completion
from chatsvc.chat.conversations import Conversations
from chatsvc.chat.prompt import PromptRenderer, with_system
from chatsvc.chat.sampling import check_supported, sampling_of, sampling_of_choice
from chatsvc.chat.types import ChatRequest, Message
from chatsvc.engine.protocol import Sampling
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.errors import ContextLengthExceeded, ModelNotFound
from chatsvc.models.card import ModelCard, SamplingDefaults
from chatsvc.models.text.template_process import TemplateProcess

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be asked of the engine. ``turns`` are the new messages, which a conversation keeps.

    The first ``num_public`` ids are the template's and the operator's.
    """

    card: ModelCard
    renderer: PromptRenderer
    prompt_ids: list[int]
    num_public: int
    sampling: Sampling
    stop: tuple[str, ...]
    turns: tuple[Message, ...]
    conversation_id: str | None
    num_choices: int = 1

    @property
    def cost_tokens(self) -> int:
        """What it uses at most; reserved before, settled after. The prompt counts once, every choice for itself."""
        return len(self.prompt_ids) + self.num_choices * self.sampling.max_tokens

    def samplings(self) -> list[Sampling]:
        """One for each choice. Choice ``i`` is what ``seed + i`` gives alone, so the first is as without others."""
        return [sampling_of_choice(self.sampling, index) for index in range(self.num_choices)]

    def choices(self) -> list[Growing]:
        """Empty completions for this plan."""
        texts = self.renderer.token_texts if self.sampling.num_logprobs is not None else None
        return [
            Growing(
                index,
                Completion(self.renderer.detokenizer(), self.stop, min_tokens=self.sampling.min_tokens, texts=texts),
            )
            for index in range(self.num_choices)
        ]


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """What configuration says about every prompt and completion.

    Attributes:
        system_prompt: goes before every conversation.
        default_max_tokens: of a completion whose request names no number.
        sampling: counts where neither the request nor the model says how tokens are chosen.
    """

    system_prompt: str
    default_max_tokens: int
    sampling: SamplingDefaults


class Planner:
    """Makes plans for whatever model the engine serves at the moment."""

    def __init__(
        self,
        engine: EngineClient,
        conversations: Conversations,
        templates: TemplateProcess,
        options: PlannerOptions,
    ) -> None:
        self._engine = engine
        self._conversations = conversations
        self._templates = templates
        self._options = options
        self._made: dict[str, tuple[PromptRenderer, list[int]]] = {}
        self._making = threading.Lock()

    def prepare(self, card: ModelCard) -> None:
        """Make what is made once a model, before anybody asks, and try it.

        Raises:
            ModelRefused, InvalidRequest: its chat template cannot be used.
        """
        renderer, _ = self._renderer_for(card)
        renderer.prompt_ids(with_system(self._options.system_prompt, [Message("user", "Hello")]))

    def plan(self, account_id: str, request: ChatRequest) -> Plan:
        """Work it out.

        Raises:
            NotFound: another model was asked for, or a conversation that is not the caller's.
            InvalidRequest: the model's runner cannot choose tokens as the request wants it.
            ContextLengthExceeded: prompt and completion do not fit the model's context.
            EngineUnavailable: no model is ready.
        """
        renderer, beginning = self._renderer_for(self._engine.card())
        if request.model is not None and request.model != renderer.card.name:
            raise ModelNotFound
        check_supported(request.sampling, renderer.card, renderer.num_ids)
        conversation_id = request.conversation_id
        history: list[Message] = []
        if conversation_id is not None:
            history = self._conversations.history(account_id, conversation_id)
        elif request.keep:
            conversation_id = self._conversations.new_id()
        turns, prompt_ids = self._prompt(renderer, history, request)
        return Plan(
            card=renderer.card,
            renderer=renderer,
            prompt_ids=prompt_ids,
            num_public=len(beginning) if prompt_ids[: len(beginning)] == beginning else 0,
            sampling=self._sampling(request, len(prompt_ids), renderer.card),
            stop=request.stop,
            turns=turns,
            conversation_id=conversation_id,
            num_choices=request.num_choices,
        )

    def text_of(self, prompt: str | Sequence[int]) -> str:
        """What a prompt says.

        Raises:
            InvalidRequest: an id that no token has.
            EngineUnavailable: no model is ready.
        """
        return self._renderer_for(self._engine.card())[0].text_of(prompt)

    def _prompt(
        self, renderer: PromptRenderer, history: list[Message], request: ChatRequest
    ) -> tuple[tuple[Message, ...], list[int]]:
        """The new turns, and the ids of all of it."""
        if request.prompt is not None:
            prompt_ids = renderer.plain_ids(self._options.system_prompt, request.prompt)
            return (Message("user", renderer.text_of(request.prompt)),), prompt_ids
        turns = tuple(message for message in request.messages if message.role != "system")
        return turns, renderer.prompt_ids(
            self._conversation(history, request.messages),
            opens_answer=request.opens_answer,
            continues_final=request.continues_final_message,
        )

    def _conversation(self, history: list[Message], messages: tuple[Message, ...]) -> tuple[Message, ...]:
        num_leading = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
        return with_system(self._options.system_prompt, [*messages[:num_leading], *history, *messages[num_leading:]])

    def _sampling(self, request: ChatRequest, num_prompt_tokens: int, card: ModelCard) -> Sampling:
        context_length = card.context_length
        num_free = context_length - num_prompt_tokens
        wanted = (
            request.max_tokens if request.max_tokens is not None else min(self._options.default_max_tokens, num_free)
        )
        if num_free < 1 or wanted > num_free:
            raise ContextLengthExceeded(
                f"The model's context is {context_length} tokens. The prompt has {num_prompt_tokens}, and "
                f"{max(wanted, 1)} were asked for; shorten it or lower max_tokens.",
                param="messages" if request.prompt is None else "prompt",
            )
        return sampling_of(request.sampling, wanted, card.sampling, self._options.sampling)

    def _renderer_for(self, card: ModelCard) -> tuple[PromptRenderer, list[int]]:
        """The one that was made for this model, or a new one; a first crowd makes one (100 MB), not one each.

        With it comes what its prompts begin with before a caller's word. A prompt has that as a whole or counts as its
        caller's: where it parts from it would tell others what somebody wrote.
        """
        made = self._made.get(card.digest)
        if made is None:
            with self._making:
                made = self._made.get(card.digest) or self._make(card)
        return made

    def _make(self, card: ModelCard) -> tuple[PromptRenderer, list[int]]:
        renderer = PromptRenderer(card, self._templates)
        made = renderer, self._beginning(renderer)
        # The model before it is still asked while this one is prepared.
        self._made = dict([*self._made.items(), (card.digest, made)][-2:])
        return made

    def _beginning(self, renderer: PromptRenderer) -> list[int]:
        try:
            return renderer.beginning(self._options.system_prompt)
        except Exception as error:  # noqa: BLE001  (a template is a program, and may stumble over what nobody will ask)
            _log.info("prompts share no beginning: %s", type(error).__name__)
            return []
