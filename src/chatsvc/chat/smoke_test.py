"""Asks a model all that serving it will ask: its template, its weights, one token. Whoever passes will be served.

:func:`examine` looks without loading the weights and takes a moment; :func:`try_out` loads them the way the engine
does, so it belongs into a process of its own. Knows nothing about stores and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from chatsvc.chat.prompt import PromptRenderer, with_system
from chatsvc.chat.types import Message
from chatsvc.engine.process import Model, load
from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import Runner, RunnerOptions
from chatsvc.engine.runners.choice import choose
from chatsvc.errors import InvalidRequest, OperatorError
from chatsvc.models.card import ModelCard
from chatsvc.models.text.template_process import TemplateProcess

_TURNS = (Message("user", "Hello"), Message("assistant", "Hello!"), Message("user", "What is the capital of France?"))
_MAX_STEPS = 10_000


def examine(card: ModelCard, weights: Path | None, model_format: str, runner: str, operators: str) -> None:
    """Whether the template renders, and whether a runner serves the weights.

    Args:
        card: what the model is.
        weights: where a runner would open it; None where they are sealed, and nobody can look.
        model_format: ``gguf``, ``openvino`` or ``safetensors``.
        runner: ``engine.runner``.
        operators: ``chat.system_prompt``.

    Raises:
        OperatorError: it would not be served; the message says why.
    """
    _render(card, operators)
    if weights is not None:
        choose(weights, model_format, runner)


def try_out(model: Model, options: RunnerOptions, operators: str) -> None:
    """Load the model and let it say one token to each conversation.

    Raises:
        OperatorError: it would not be served; the message says why.
    """
    prompts = _render(model.card(), operators)
    runner = load(model, options)
    for number, prompt_ids in enumerate(prompts):
        _answer(runner, number, prompt_ids)


def _render(card: ModelCard, operators: str) -> list[list[int]]:
    """The prompts of conversations of one and of several turns, with a system message and without one.

    A template may refuse system messages by ``raise_exception``: then callers are told so, and only an operator's own
    system message makes the model useless.
    """
    with closing(TemplateProcess()) as templates:
        return _prompts(_renderer(card, templates), operators)


def _renderer(card: ModelCard, templates: TemplateProcess) -> PromptRenderer:
    try:
        return PromptRenderer(card, templates)
    except InvalidRequest as error:
        raise OperatorError(f"{error.message} Give it another chat_template.jinja.") from error


def _prompts(renderer: PromptRenderer, operators: str) -> list[list[int]]:
    conversations = [with_system(operators, _TURNS[:1]), with_system(operators, _TURNS)]
    prompts = [_prompt(renderer, conversation) for conversation in conversations]
    if not operators:
        for turns in (_TURNS[:1], _TURNS):
            try:
                prompts.append(renderer.prompt_ids(with_system("Answer briefly.", turns)))
            except InvalidRequest:
                break
    if not all(prompts):
        raise OperatorError("The model's chat template renders an empty prompt; give it another chat_template.jinja.")
    return prompts


def _prompt(renderer: PromptRenderer, conversation: Sequence[Message]) -> list[int]:
    try:
        return renderer.prompt_ids(conversation)
    except InvalidRequest as error:
        roles = ", ".join(message.role for message in conversation)
        raise OperatorError(
            f"The model's chat template does not render a conversation of {roles}: {error.message} Give it another "
            "chat_template.jinja."
        ) from error


def _answer(runner: Runner, number: int, prompt_ids: list[int]) -> None:
    try:
        runner.add(number, prompt_ids, Sampling(max_tokens=1, temperature=0), "")
        for _ in range(_MAX_STEPS):
            for output in runner.step():
                if output.finish_reason == "error":
                    raise OperatorError(f"The model does not answer: {output.detail}.")
                if output.finish_reason is not None:
                    return
    except (ValueError, RuntimeError, TypeError) as error:  # what native libraries raise for what they cannot take
        raise OperatorError(f"The model does not answer: {error}.") from error
    raise OperatorError("The model does not answer: its runner makes no progress.")
