"""The body of ``/v1/completions``, OpenAI's older API: a text to continue, without roles. Wire to domain."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema

from chatsvc.chat.types import ChatRequest
from chatsvc.http.api.chat_schema import Bounds, NonEmptyText, checked_max_tokens, stop_strings
from chatsvc.http.api.openai.chat_schema import GenerationBody

# The most prompts of a request; each counts as a request of its own for the limits and the engine.
MAX_PROMPTS = 16
# OpenAI's default for this API.
_DEFAULT_MAX_TOKENS = 16

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
_Several = Field(min_length=1, max_length=MAX_PROMPTS)


def _kind(prompt: object) -> str:
    """Which member of the union is meant, by its first item."""
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    if isinstance(first, list):
        return "list[list[int]]"
    if isinstance(first, int):
        return "list[int]"
    return "list[str]" if isinstance(prompt, list) else "str"


Prompt = Annotated[
    Annotated[NonEmptyText, Tag("str")]
    | Annotated[TokenIds, Tag("list[int]")]
    | Annotated[list[NonEmptyText], _Several, Tag("list[str]")]
    | Annotated[list[TokenIds], _Several, Tag("list[list[int]]")],
    Discriminator(_kind),
]


def _no_suffix(value: Any) -> Any:
    if value not in (None, ""):
        raise ValueError("inserting text before a suffix is not supported here; leave it out")
    return value


class CompletionBody(GenerationBody):
    """The request of OpenAI's Completions."""

    prompt: Annotated[Prompt, Field(examples=["The capital of France is"])]
    echo: bool | None = None
    suffix: Annotated[Any, AfterValidator(_no_suffix), WithJsonSchema({"enum": [None, ""]}), Field(default=None)]
    best_of: Annotated[int, Field(ge=0, le=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    def prompts(self) -> list[str | tuple[int, ...]]:
        """One or several, each a text or token ids."""
        given: Any = self.prompt  # the members of the union are told apart by their items
        is_one = isinstance(given, str) or isinstance(given[0], int)
        return [item if isinstance(item, str) else tuple(item) for item in ([given] if is_one else given)]

    def to_requests(self, bounds: Bounds) -> list[ChatRequest]:
        """The domain's requests, one for each prompt.

        Raises:
            InvalidRequest: more tokens than the configured cap.
        """
        wanted = checked_max_tokens(self.max_tokens, bounds, "max_tokens")
        return [
            ChatRequest(
                prompt=prompt,
                max_tokens=min(_DEFAULT_MAX_TOKENS, bounds.max_tokens_cap) if wanted is None else wanted,
                sampling=self.sampling(self.logprobs),
                num_choices=self.n or 1,
                stop=stop_strings(self.stop),
                model=self.model,
                keep=False,
            )
            for prompt in self.prompts()
        ]
