"""Step 8, the prompt: from a request to prompt ids, sampling and the largest number of tokens it can use.

Knows nothing about admission, records or HTTP.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from chatsvc.chat.choices import RunningChoice
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
    """What the engine will be asked for.

    Attributes:
        num_public: length of the public prompt prefix, the ids that come from the template and the operator.
        turns: the new messages, to be stored in the conversation.
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
        """The most tokens it can use; reserved from the quota. The prompt counts once, each choice separately."""
        return len(self.prompt_ids) + self.num_choices * self.sampling.max_tokens

    def samplings(self) -> list[Sampling]:
        """One for each choice. Choice ``i`` uses ``seed + i``, so the first equals a request for one choice."""
        return [sampling_of_choice(self.sampling, index) for index in range(self.num_choices)]

    def choices(self) -> list[RunningChoice]:
        """One empty completion for each choice."""
        texts = self.renderer.token_texts if self.sampling.num_logprobs is not None else None
        return [
            RunningChoice(
                index,
                Completion(self.renderer.detokenizer(), self.stop, min_tokens=self.sampling.min_tokens, texts=texts),
            )
            for index in range(self.num_choices)
        ]


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """The configured values for all prompts and completions.

    Attributes:
        system_prompt: goes before every conversation.
        default_max_tokens: used if the request names none.
        sampling: used for values that neither the request nor the model sets.
    """

    system_prompt: str
    default_max_tokens: int
    sampling: SamplingDefaults


class Planner:
    """Makes plans for the model that the engine serves at the moment."""

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
        """Build what a model needs once, before its first request, and test its template.

        Raises:
            ModelRefused, InvalidRequest: its chat template cannot be used.
        """
        renderer, _ = self._renderer_for(card)
        renderer.prompt_ids(with_system(self._options.system_prompt, [Message("user", "Hello")]))

    def plan(self, account_id: str, request: ChatRequest) -> Plan:
        """Make the plan of a request.

        Raises:
            NotFound: the request names another model, or a conversation that is not the caller's.
            InvalidRequest: the model's runner does not support the requested sampling.
            ContextLengthExceeded: prompt and completion do not fit the model's context.
            EngineUnavailable: no model is ready.
        """
        renderer, public_prefix = self._renderer_for(self._engine.card())
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
            num_public=len(public_prefix) if prompt_ids[: len(public_prefix)] == public_prefix else 0,
            sampling=self._sampling(request, len(prompt_ids), renderer.card),
            stop=request.stop,
            turns=turns,
            conversation_id=conversation_id,
            num_choices=request.num_choices,
        )

    def text_of(self, prompt: str | Sequence[int]) -> str:
        """The text of a prompt.

        Raises:
            InvalidRequest: an id that no token has.
            EngineUnavailable: no model is ready.
        """
        return self._renderer_for(self._engine.card())[0].text_of(prompt)

    def _prompt(
        self, renderer: PromptRenderer, history: list[Message], request: ChatRequest
    ) -> tuple[tuple[Message, ...], list[int]]:
        """The new turns, and the ids of the whole prompt."""
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
        """The model's renderer and public prompt prefix, made at first use and once only: a renderer takes 100 MB.

        A prompt contains the whole prefix or counts as entirely the caller's: the place where it departs from the
        prefix would tell others what the caller wrote.
        """
        made = self._made.get(card.digest)
        if made is None:
            with self._making:
                made = self._made.get(card.digest) or self._make(card)
        return made

    def _make(self, card: ModelCard) -> tuple[PromptRenderer, list[int]]:
        renderer = PromptRenderer(card, self._templates)
        made = renderer, self._public_prefix(renderer)
        # Two are kept: the previous model still gets requests while this one is prepared.
        self._made = dict([*self._made.items(), (card.digest, made)][-2:])
        return made

    def _public_prefix(self, renderer: PromptRenderer) -> list[int]:
        try:
            return renderer.public_prefix(self._options.system_prompt)
        except Exception as error:  # noqa: BLE001  (a template is a program and may raise anything)
            _log.info("prompts have no public prefix: %s", type(error).__name__)
            return []
