"""Whether a model can be served: its template renders, a runner takes its weights, and it generates a token.

:func:`check_without_loading` is quick. :func:`check_by_loading` loads the weights as the engine does, so call it in a
process of its own. Knows nothing about the model store.
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


def check_without_loading(
    card: ModelCard, weights: Path | None, model_format: str, runner: str, operator_text: str
) -> None:
    """Check that the template renders and that a runner serves the weights.

    Args:
        card: what the model is.
        weights: the path that a runner would open; None if they are sealed and cannot be read here.
        model_format: ``gguf``, ``openvino`` or ``safetensors``.
        runner: ``engine.runner``.
        operator_text: ``chat.system_prompt``.

    Raises:
        OperatorError: it cannot be served; the message says why.
    """
    _render(card, operator_text)
    if weights is not None:
        choose(weights, model_format, runner)


def check_by_loading(model: Model, options: RunnerOptions, operator_text: str) -> None:
    """Load the model and generate one token for each test conversation.

    Raises:
        OperatorError: it would not be served; the message says why.
    """
    prompts = _render(model.card(), operator_text)
    runner = load(model, options)
    for number, prompt_ids in enumerate(prompts):
        _answer(runner, number, prompt_ids)


def _render(card: ModelCard, operator_text: str) -> list[list[int]]:
    """Prompts of conversations with one and with several turns, with and without a system message.

    A template may refuse system messages by ``raise_exception``. Then a caller who sends one gets a 400; the model is
    unusable only if the operator has set a system prompt.
    """
    with closing(TemplateProcess()) as templates:
        return _prompts(_renderer(card, templates), operator_text)


def _renderer(card: ModelCard, templates: TemplateProcess) -> PromptRenderer:
    try:
        return PromptRenderer(card, templates)
    except InvalidRequest as error:
        raise OperatorError(f"{error.message} Give it another chat_template.jinja.") from error


def _prompts(renderer: PromptRenderer, operator_text: str) -> list[list[int]]:
    conversations = [with_system(operator_text, _TURNS[:1]), with_system(operator_text, _TURNS)]
    prompts = [_prompt(renderer, conversation) for conversation in conversations]
    if not operator_text:
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
    except (
        ValueError,
        RuntimeError,
        TypeError,
    ) as error:  # raised by inference libraries
        raise OperatorError(f"The model does not answer: {error}.") from error
    raise OperatorError("The model does not answer: its runner makes no progress.")
