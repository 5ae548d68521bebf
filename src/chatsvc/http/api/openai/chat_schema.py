"""The bodies of ``/v1``: OpenAI's, wire to domain.

Hints and unknown fields are accepted and ignored (:mod:`chatsvc.http.api.openai.tolerance`); a field that would change
the answer and is not supported is a 400 that names it. Knows nothing about routes.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StrictFloat, WithJsonSchema, model_validator

from chatsvc.chat.types import ChatRequest, SamplingRequest
from chatsvc.http.api.chat_schema import (
    Bounds,
    NonEmptyText,
    Seed,
    Temperature,
    TopP,
    checked_max_tokens,
    stop_strings,
)
from chatsvc.http.api.openai.messages import OpenAIMessage
from chatsvc.http.api.openai.response_format import ResponseFormat
from chatsvc.http.api.openai.tolerance import Hint, Tolerant, Unsupported
from chatsvc.http.wire.schema import Text

_MAX_BIASES = 1024


def _are_not_too_many(value: Any) -> Any:
    """Checked before the single entries, because a long body can hold hundreds of thousands."""
    if isinstance(value, dict) and len(value) > _MAX_BIASES:
        raise ValueError(f"at most {_MAX_BIASES} of them")
    return value


def _keys_are_ids(value: dict[str, float]) -> dict[str, float]:
    """A bias of 0 changes nothing, whatever its key."""
    for key, bias in value.items():
        if bias and not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ValueError('the keys are token ids, such as "1917"')
    return value


Penalty = Annotated[StrictFloat, Field(ge=-2, le=2)]
TopK = Annotated[int, Field(ge=-1, lt=2**31)]  # -1 and 0: no bound
MinP = Annotated[StrictFloat, Field(ge=0, le=1)]
RepetitionPenalty = Annotated[StrictFloat, Field(gt=0, le=10)]
Bias = Annotated[StrictFloat, Field(ge=-100, le=100)]
LogitBias = Annotated[
    dict[Text, Bias], Field(max_length=_MAX_BIASES), BeforeValidator(_are_not_too_many), AfterValidator(_keys_are_ids)
]
# The most sequences that a request may have in the engine.
MAX_CHOICES = 16
TopLogprobs = Annotated[int, Field(ge=0, le=20)]
MinTokens = Annotated[int, Field(ge=0, lt=2**31)]
# 0: nothing is generated, the prompt is only counted.
MaxTokens = Annotated[int, Field(ge=0)]
StopList = Annotated[list[NonEmptyText], Field(max_length=4)]


def _only_text(value: Any) -> Any:
    if value not in (None, ["text"]):
        raise ValueError("only plain text is supported here yet")
    return value


def _no_call_is_forced(value: Any) -> Any:
    if value not in (None, "none", "auto"):
        raise ValueError("tools are not supported here yet, so a call cannot be forced; use 'auto' or 'none'")
    return value


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
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logit_bias: LogitBias | None = None
    # vLLM's and llama.cpp's
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    min_tokens: MinTokens | None = None
    ignore_eos: bool | None = None
    # a hint: does not change the answer
    user: Hint = None
    # other servers' fields for constrained output
    grammar: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    json_schema: Unsupported = None
    structured_outputs: Unsupported = None
    use_beam_search: Unsupported = None

    def ignored_fields(self) -> set[str]:
        """Without ``stream``, ``stream_options`` is ignored too."""
        unread = {"stream_options"} if self.stream_options is not None and not self.stream else set()
        return super().ignored_fields() | unread

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, num_logprobs: int | None) -> SamplingRequest:
        """How tokens are chosen; ``num_logprobs`` as in :class:`SamplingRequest`."""
        return SamplingRequest(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={int(id_): bias for id_, bias in (self.logit_bias or {}).items() if bias},
            seed=self.seed,
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            num_logprobs=num_logprobs,
        )


def _logprobs_first(schema: dict[str, Any]) -> None:
    schema["if"] = {"required": ["top_logprobs"], "properties": {"top_logprobs": {"type": "integer", "minimum": 1}}}
    schema["then"] = {"required": ["logprobs"], "properties": {"logprobs": {"const": True}}}


_EXAMPLE = [{"role": "user", "content": "What is the capital of France?"}]


class OpenAIBody(GenerationBody):
    """The request of OpenAI's Chat Completions."""

    model_config = ConfigDict(json_schema_extra=_logprobs_first)

    messages: Annotated[
        list[OpenAIMessage],
        Field(min_length=1, max_length=1000, fail_fast=True, examples=[_EXAMPLE]),
    ]
    max_completion_tokens: MaxTokens | None = None
    response_format: ResponseFormat = None
    modalities: TextOnly = None
    tool_choice: ToolChoice = None
    function_call: ToolChoice = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    # vLLM's: how the prompt ends
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # accepted, and answered in text, until tools are supported
    tools: Hint = None
    functions: Hint = None
    parallel_tool_calls: Hint = None
    # hints: do not change the answer
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

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only together with 'logprobs': true")
        if self.response_format is not None and (self.min_tokens or self.ignore_eos):
            raise ValueError(
                "response_format: not together with 'min_tokens' or 'ignore_eos'; the schema ends the answer"
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message: only together with 'add_generation_prompt': false")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message: the last message must be the assistant's")
        return self

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
            # the old and the new name; if both are sent, the smaller applies
            max_tokens=min((number for number in given if number is not None), default=None),
            sampling=dataclasses.replace(
                self.sampling((self.top_logprobs or 0) if self.logprobs else None), grammar=self.response_format
            ),
            num_choices=self.n or 1,
            continues_final_message=bool(self.continue_final_message),
            opens_answer=self.add_generation_prompt is not False,
            stop=stop_strings(self.stop),
            model=self.model,
            keep=False,
        )
