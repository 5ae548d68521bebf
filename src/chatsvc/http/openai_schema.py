"""The bodies of ``/v1``: OpenAI's, wire to domain.

A hint and a field that is not known are taken and ignored (:mod:`chatsvc.http.tolerance`); what would change the
answer and is not built is a 400 that names it. Knows nothing about routes.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictFloat, WithJsonSchema

from chatsvc.chat.types import ChatRequest, SamplingRequest
from chatsvc.http.chat_schema import (
    Bounds,
    NonEmptyText,
    Seed,
    Temperature,
    TopP,
    checked_max_tokens,
    stop_strings,
)
from chatsvc.http.openai_messages import OpenAIMessage
from chatsvc.http.schema import Text
from chatsvc.http.tolerance import Hint, Tolerant, Unsupported

Penalty = Annotated[StrictFloat, Field(ge=-2, le=2)]
# 0: nothing is generated, the prompt is only counted.
MaxTokens = Annotated[int, Field(ge=0)]
StopList = Annotated[list[NonEmptyText], Field(max_length=4)]


def _only_text(value: Any) -> Any:
    if value is not None and value != ["text"] and not (isinstance(value, dict) and value.get("type") == "text"):
        raise ValueError("only plain text is supported here yet")
    return value


def _no_call_is_forced(value: Any) -> Any:
    if value not in (None, "none", "auto"):
        raise ValueError("tools are not built here yet, so none can be called for certain; use 'auto' or 'none'")
    return value


_TEXT_FORMAT = {"type": "object", "required": ["type"], "properties": {"type": {"const": "text"}}}
TextFormat = Annotated[Any, AfterValidator(_only_text), WithJsonSchema({"anyOf": [{"type": "null"}, _TEXT_FORMAT]})]
TextOnly = Annotated[Any, AfterValidator(_only_text), WithJsonSchema({"enum": [None, ["text"]]})]
ToolChoice = Annotated[Any, AfterValidator(_no_call_is_forced), WithJsonSchema({"enum": [None, "none", "auto"]})]


class StreamOptions(Tolerant):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: Hint = None
    continuous_usage_stats: Hint = None


class GenerationBody(Tolerant):
    """What ``/v1/chat/completions`` and ``/v1/completions`` have in common."""

    model: Text | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: StopList | NonEmptyText | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None  # a Literal takes true too
    logit_bias: Unsupported = None
    # a hint: it changes nothing in the answer
    user: Hint = None
    # other servers' ways to bind the answer to a form
    grammar: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    json_schema: Unsupported = None
    structured_outputs: Unsupported = None
    use_beam_search: Unsupported = None

    def ignored_fields(self) -> set[str]:
        """How to stream says nothing about an answer that is not streamed."""
        unread = {"stream_options"} if self.stream_options is not None and not self.stream else set()
        return super().ignored_fields() | unread

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self) -> SamplingRequest:
        """How tokens are chosen."""
        return SamplingRequest(
            temperature=self.temperature,
            top_p=self.top_p,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=self.seed,
        )


class OpenAIBody(GenerationBody):
    """The request of OpenAI's Chat Completions."""

    messages: Annotated[list[OpenAIMessage], Field(min_length=1, max_length=1000)]
    max_completion_tokens: MaxTokens | None = None
    response_format: TextFormat = None
    modalities: TextOnly = None
    tool_choice: ToolChoice = None
    function_call: ToolChoice = None
    logprobs: Unsupported = None
    top_logprobs: Unsupported = None
    # answered in text until tools are built
    tools: Hint = None
    functions: Hint = None
    parallel_tool_calls: Hint = None
    # hints: they change nothing in the answer
    audio: Hint = None  # the voice of an answer in audio, which `modalities` asks for
    metadata: Hint = None
    moderation: Hint = None
    prediction: Hint = None
    prompt_cache_key: Hint = None
    prompt_cache_options: Hint = None
    prompt_cache_retention: Hint = None
    reasoning_effort: Hint = None
    safety_identifier: Hint = None
    service_tier: Hint = None
    store: Hint = None
    verbosity: Hint = None
    web_search_options: Hint = None

    def to_request(self, bounds: Bounds) -> ChatRequest:
        """The domain's request; it is not kept in a conversation.

        Raises:
            InvalidRequest: more tokens than the configured cap.
        """
        given = (
            checked_max_tokens(self.max_tokens, bounds, "max_tokens"),
            checked_max_tokens(self.max_completion_tokens, bounds, "max_completion_tokens"),
        )
        return ChatRequest(
            messages=tuple(message.to_message() for message in self.messages),
            # the old name and the new one; of both the tighter holds
            max_tokens=min((number for number in given if number is not None), default=None),
            sampling=self.sampling(),
            stop=stop_strings(self.stop),
            model=self.model,
            keep=False,
        )
