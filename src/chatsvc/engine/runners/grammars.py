"""Constrained output: from a JSON Schema, a regular expression or a grammar to the token ids that may come next.

llguidance compiles grammars and computes masks; this module bounds what that may cost and shares what was compiled.
Compiling happens in one thread of low priority, so it delays no step. Knows nothing about runners or sampling.

What bounds the cost of a hostile grammar: the size of its text (:data:`MAX_GRAMMAR_BYTES`), and llguidance's own limits
(:data:`_LIMITS`), on the grammar's size, on the work of compiling and of each mask, and on the states that are kept.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from chatsvc.engine.protocol import MAX_GRAMMAR_BYTES, Grammar
from chatsvc.engine.runners.masks import Mask
from chatsvc.models.card import ModelCard

_MAX_CACHED = 16
_MAX_REASON_CHARS = 300
_PRIORITY = 10  # a step's threads go before
_LIMITS = LLParserLimits(
    max_grammar_size=10_000,  # symbols: the time to compile grows with the square of an object's optional properties
    initial_lexer_fuel=300_000,  # to compile: about 10 ms
    step_lexer_fuel=100_000,  # for a mask: about 7 ms
    step_max_items=20_000,  # for a mask: about 1 ms
    max_lexer_states=10_000,  # about 20 MB
    verbose_errors=False,
)
# One form of JSON with no choice of white space: a model could go on with white space for ever, and more is forced.
_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
_MAX_COMMON_MULTIPLE = 20_000
_UNKNOWN_KEYS = re.compile(r"Unimplemented keys: \[(.*)\]")


class GrammarRefused(ValueError):
    """The grammar cannot be obeyed; the message tells the caller why."""


@dataclass(slots=True, eq=False)
class _Compiled:
    """A grammar as it was compiled. Its copies share what its lexer has learnt, so a failure of one is all copies'."""

    matcher: LLMatcher
    has_failed: bool = False


class Constraint:
    """What one sequence may generate next. Used by one thread.

    Attributes:
        failure: why nothing can follow any more; empty while something can.
    """

    def __init__(self, compiled: _Compiled) -> None:
        self._compiled = compiled
        self._matcher = compiled.matcher.deep_copy()
        self.failure = ""

    def masks(self, guesses: Sequence[int]) -> list[Mask]:
        """What may come next, and what may come after each of the guesses, all of which are :meth:`passable`."""
        masks = [self._mask()]
        for guess in guesses:
            self._matcher.consume_token(guess)
            masks.append(self._mask())
        if guesses:
            self._matcher.rollback(len(guesses))
        return masks

    def passable(self, guesses: Sequence[int]) -> list[int]:
        """The first of the guesses, as far as they may come."""
        return list(guesses[: self._matcher.validate_tokens(list(guesses))]) if guesses else []

    def forced(self) -> list[int]:
        """How the only text that can come next is usually cut into tokens; often empty."""
        return [] if self.failure else self._matcher.compute_ff_tokens()

    def advance(self, token: int) -> None:
        """The token comes next."""
        self._matcher.consume_token(token)
        self._check()

    def _mask(self) -> Mask:
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint32)
        self._check()
        return np.zeros_like(mask) if self.failure else mask

    def _check(self) -> None:
        if not self.failure and self._matcher.is_error():
            self.failure = _shown(self._matcher.get_error())
            self._compiled.has_failed = True


class Grammars:
    """Compiles grammars for one model and keeps the latest :data:`_MAX_CACHED`, each of at most about 20 MB.

    The vocabulary is read at the first grammar, which takes a second and about 20 times the tokenizer file's size.
    """

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self._cache: OrderedDict[Grammar, _Compiled] = OrderedDict()  # the thread's alone, like the next
        self._tokenizer: LLTokenizer | None = None
        self._executor = ThreadPoolExecutor(1, "grammars", _lower_priority)

    def compile(self, grammar: Grammar) -> Future[Constraint]:
        """Begin to compile, or take what was compiled before. The future may raise :class:`GrammarRefused`."""
        return self._executor.submit(self._constraint, grammar)

    def close(self) -> None:
        """Compile nothing more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _constraint(self, grammar: Grammar) -> Constraint:
        compiled = self._cache.pop(grammar, None)
        if compiled is None or compiled.has_failed:
            compiled = self._compiled(grammar)
        self._cache[grammar] = compiled
        if len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return Constraint(compiled)

    def _compiled(self, grammar: Grammar) -> _Compiled:
        text = _checked_text(grammar)
        if self._tokenizer is None:
            try:
                self._tokenizer = LLTokenizer(
                    self._card.tokenizer_json.decode(),
                    eos_token=self._card.eos_token_ids,
                    slices=LLTokenizer.json_slices(),
                )
            except ValueError as error:
                raise GrammarRefused(f"this model's tokenizer cannot be constrained ({_shown(str(error))})") from error
        compiled = _Compiled(LLMatcher(self._tokenizer, text, log_level=0, limits=_LIMITS))
        if compiled.matcher.is_error():
            raise GrammarRefused(_shown(compiled.matcher.get_error()))
        first = Constraint(compiled)
        if not first.masks([])[0].any():  # and the first mask costs most
            is_dead_end = first.failure in ("", "NoExtension", "NoExtensionBias")
            raise GrammarRefused("no text obeys it" if is_dead_end else first.failure)
        return compiled


def _checked_text(grammar: Grammar) -> str:
    """The grammar as llguidance takes it."""
    if len(grammar.text.encode()) > MAX_GRAMMAR_BYTES:
        raise GrammarRefused(f"it has more than {MAX_GRAMMAR_BYTES} bytes")
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    try:
        schema = json.loads(grammar.text)
        if not isinstance(schema, dict):
            raise GrammarRefused("a schema is a JSON object")
        if "x-guidance" in schema:  # it would change what is refused
            raise GrammarRefused("the schema uses 'x-guidance', which is not supported here")
        if _common_multiple(schema) > _MAX_COMMON_MULTIPLE:
            raise GrammarRefused("the numbers of 'multipleOf' have a common multiple that is too large")
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
    except (ValueError, RecursionError) as error:
        if isinstance(error, GrammarRefused):
            raise
        raise GrammarRefused(f"the schema cannot be read ({_shown(str(error))})") from error


def _common_multiple(schema: object) -> int:
    """Of all numbers of ``multipleOf``, without their powers of ten: so many states of a number need be told apart.

    llguidance does not count them among its limits; at a million it would compile for 15 seconds.
    """
    multiple, left = 1, [schema]
    while left and multiple <= _MAX_COMMON_MULTIPLE:
        one = left.pop()
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        number = one.get("multipleOf") if isinstance(one, dict) else None
        if not isinstance(number, int | float) or not number > 0 or math.isinf(number):
            continue
        digits = Decimal(str(number)).normalize().as_tuple().digits
        multiple = math.lcm(multiple, int("".join(map(str, digits))))
    return multiple


def _shown(reason: str) -> str:
    """The first line of what llguidance says, with the keywords of a schema named as ours."""
    line = reason.strip().partition("\n")[0][:_MAX_REASON_CHARS]
    return _UNKNOWN_KEYS.sub(r"the schema uses \1, which is not supported here", line)


def _lower_priority() -> None:
    with contextlib.suppress(OSError):  # it only means less fairness
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PRIORITY)
