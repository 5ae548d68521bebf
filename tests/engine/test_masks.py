"""Constrained output in the runners: the native pass finds the largest allowed logits, and no row notices another's mask."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from chatsvc.engine.protocol import Grammar, Sampling, TokenLogprobs
from chatsvc.engine.runners.base import Runner, RunnerOptions, StepOutput
from chatsvc.engine.runners.choice import load_runner
from chatsvc.engine.runners.grammars import Grammars
from chatsvc.engine.runners.masks import Mask, is_allowed
from chatsvc.engine.runners.native import library
from chatsvc.engine.runners.native.filling import fill
from chatsvc.engine.runners.native.library import Capacity, Model, Rows
from chatsvc.engine.runners.native.runner import NativeRunner
from chatsvc.engine.runners.native.weights import open_weights
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.errors import InvalidRequest
from chatsvc.models.store import ModelFolder
from tests.engine.conftest import StartLoop, read_all, wait_for
from tests.engine.test_grammars import PERSON
from tests.engine.test_native import PARIS, load
from tests.engine.test_native_parts import IDS, MODELS, write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(library.missing()), reason=f"the native runner does not run here: {library.missing()}"),
]

SCHEMA = Grammar("json_schema", json.dumps(PERSON))
COLOURS = Grammar("json_schema", json.dumps({"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 4}))
GROWING = Grammar("regex", "(.*a.{50}b.*|.*c.{60}d.*|.*e.{30}f)")


def masks_of(num_ids: int) -> list[Mask | None]:
    """Dense, sparse, single ids in the first and the last panel, few whole panels, all, none, and no mask."""
    random = np.random.default_rng(1)
    chosen = [random.random(num_ids) < share for share in (0.9, 0.5, 0.02)]
    chosen += [np.arange(num_ids) == place for place in (0, num_ids - 1)]
    chosen += [np.arange(num_ids) // 16 % 9 == 4, np.ones(num_ids, bool), np.zeros(num_ids, bool)]
    padded = [np.pad(one, (0, -num_ids % 32)) for one in chosen]
    return [None, *(np.packbits(one, bitorder="little").view(np.uint32) for one in padded)]


@pytest.mark.parametrize("vocab_size", [500, 512, 5003])  # the last panel is full, or is not
def test_the_largest_allowed_logits_are_those_of_all(tmp_path: Path, vocab_size: int) -> None:
    weights = open_weights(write(tmp_path, "qwen2", vocab_size=vocab_size))
    model = Model(weights.shape, Capacity(max_tokens=256, max_rows=256, num_pages=8, num_threads=2))
    fill(model, weights)
    batch = [Rows(IDS, 0, list(range(8)))]
    logits = model.forward(batch, range(40)).copy()
    masks = masks_of(vocab_size)
    # A few at a time, then only what may be among the largest is computed; or all at once.
    for outputs in ([3], [1, 2], list(range(8)), list(range(4, 12)), list(range(40))):
        for shift in range(len(masks)):
            given = [masks[(row + shift) % len(masks)] for row in outputs]
            for count in (1, 3, 16, 50):
                found = model.forward_largest(batch, outputs, [count] * len(outputs), given)
                for row, mask, output in zip(outputs, given, found, strict=True):
                    ids = np.arange(vocab_size) if mask is None else np.flatnonzero(is_allowed(mask, vocab_size))
                    expected = ids[np.lexsort((ids, -logits[row][ids]))][:count]
                    assert output.is_finite
                    assert output.ids[: len(expected)].tolist() == expected.tolist()
                    assert np.array_equal(output.logits[: len(expected)], logits[row][expected])
                    assert np.all(output.logits[len(expected) :] == -np.inf)
        everything = model.forward_largest(batch, outputs, [0] * len(outputs), given)
        assert all(np.array_equal(output.logits, logits[row]) for row, output in zip(outputs, everything, strict=True))


@pytest.fixture(scope="module")
def native(smollm2: ModelFolder) -> NativeRunner:
    return load(smollm2, max_num_seqs=16)


@pytest.fixture(scope="module")
def careful(smollm2: ModelFolder) -> NativeRunner:
    """Guesses nothing."""
    return load(smollm2, max_num_seqs=16, max_draft_tokens=0)


@pytest.fixture(scope="module")
def grammars(smollm2: ModelFolder) -> Iterator[Grammars]:
    made = Grammars(smollm2.card())
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer(smollm2: ModelFolder) -> Tokenizer:
    return Tokenizer.from_buffer(smollm2.card().tokenizer_json)


Result = tuple[list[int], list[TokenLogprobs], StepOutput]


def results_of(runner: Runner, grammars: Grammars, work: Sequence[Sampling]) -> tuple[int, list[Result]]:
    """Steps; tokens, log-probabilities and last output of each."""
    for number, sampling in enumerate(work):
        constraint = None if sampling.grammar is None else grammars.compile(sampling.grammar).result(60)
        runner.add(number, PARIS, sampling, "masks", constraint=constraint)
    found: dict[int, list[StepOutput]] = {number: [] for number in range(len(work))}
    num_steps = num_ended = 0
    while num_ended < len(work):
        num_steps += 1
        for output in runner.step():
            found[output.sequence_id].append(output)
            num_ended += output.finish_reason is not None
    results = [
        ([id_ for one in outputs for id_ in one.token_ids], [p for one in outputs for p in one.logprobs], outputs[-1])
        for outputs in found.values()
    ]
    return num_steps, [(ids, logprobs, end) for ids, logprobs, end in results]


def plain(results: Sequence[Result]) -> list[Any]:
    return [(ids, logprobs, end.finish_reason) for ids, logprobs, end in results]


MIXED = [
    Sampling(max_tokens=60, temperature=0, grammar=SCHEMA),
    Sampling(max_tokens=24, temperature=0),
    Sampling(max_tokens=60, temperature=1.3, seed=1, top_k=12, grammar=SCHEMA),
    Sampling(max_tokens=24, temperature=0.9, seed=2, num_logprobs=2),
    Sampling(max_tokens=60, temperature=0.9, seed=3, num_logprobs=3, grammar=COLOURS),
    Sampling(max_tokens=24, temperature=1.0, seed=4, top_k=10),
    Sampling(max_tokens=60, temperature=1.0, seed=5, repetition_penalty=1.2, grammar=SCHEMA),
    Sampling(max_tokens=60, temperature=1.0, seed=6, logit_bias={34: -100.0, 2: -100.0}, grammar=COLOURS),
]


def test_masks_company_and_guesses_change_no_bit_of_a_row(
    native: NativeRunner, careful: NativeRunner, grammars: Grammars
) -> None:
    alone = [plain(results_of(careful, grammars, [sampling])[1])[0] for sampling in MIXED]
    assert [plain(results_of(native, grammars, [sampling])[1])[0] for sampling in MIXED] == alone
    assert plain(results_of(native, grammars, MIXED)[1]) == alone
    assert plain(results_of(careful, grammars, [*MIXED, *MIXED][::-1])[1]) == [*alone, *alone][::-1]


def test_what_is_generated_obeys_its_schema(native: NativeRunner, grammars: Grammars, tokenizer: Tokenizer) -> None:
    for ids, _, end in results_of(native, grammars, [one for one in MIXED if one.grammar == SCHEMA])[1]:
        value = json.loads(tokenizer.decode(ids))
        assert end.finish_reason == "stop"
        assert end.token_ids == [] or end.num_generated == len(end.token_ids) + 1  # the end is counted, not shown
        assert set(value) <= {"name", "age"}
        assert value["name"]


def test_forced_tokens_are_guessed(
    native: NativeRunner, careful: NativeRunner, grammars: Grammars, tokenizer: Tokenizer
) -> None:
    schema = {"const": {"the capital": "Paris", "of the country": "France", "on the river": ["Seine"]}}
    work = [Sampling(max_tokens=60, temperature=0, grammar=Grammar("json_schema", json.dumps(schema)))]
    num_careful, expected = results_of(careful, grammars, work)
    num_steps, found = results_of(native, grammars, work)
    assert plain(found) == plain(expected)
    assert json.loads(tokenizer.decode(found[0][0])) == schema["const"]
    assert num_steps < num_careful / 2


def test_a_sequence_that_is_cut_off_says_so(native: NativeRunner, grammars: Grammars) -> None:
    _, [(ids, _, end)] = results_of(native, grammars, [Sampling(max_tokens=5, temperature=0, grammar=SCHEMA)])
    assert (len(ids), end.finish_reason) == (5, "length")


def test_a_grammar_that_grows_too_large_ends_its_own_sequence_only(native: NativeRunner, grammars: Grammars) -> None:
    growing = Sampling(max_tokens=200, temperature=1.5, seed=1, grammar=GROWING)
    other = Sampling(max_tokens=60, temperature=0, grammar=SCHEMA)
    _, [(_, _, end), *rest] = results_of(native, grammars, [growing, other, MIXED[1]])
    assert end.finish_reason == "error"
    assert "too many" in end.refusal
    assert end.detail == ""
    assert plain(rest) == plain(results_of(native, grammars, [other, MIXED[1]])[1])
    assert native.cache_usage() == 0


def test_a_runner_that_cannot_mask_says_so(openvino: Runner, grammars: Grammars) -> None:
    assert "response_format" in openvino.card.unsupported
    with pytest.raises(ValueError, match="supports no grammar"):
        openvino.add(1, PARIS, MIXED[0], "", constraint=grammars.compile(SCHEMA).result(60))


def test_the_reference_runner_obeys_too(
    tmp_path: Path, smollm2: ModelFolder, grammars: Grammars, tokenizer: Tokenizer
) -> None:
    """A random model: without the mask it would write anything."""
    torch.manual_seed(1)
    MODELS["qwen2"](vocab_size=49152, num_hidden_layers=1).save_pretrained(tmp_path)
    runner = load_runner(tmp_path, "safetensors", smollm2.card(), RunnerOptions(kind="torch"))
    work = [
        Sampling(max_tokens=60, temperature=1, seed=1, num_logprobs=1, grammar=COLOURS),
        Sampling(max_tokens=9, temperature=1, seed=2),
        Sampling(max_tokens=60, temperature=0, repetition_penalty=1.5, grammar=COLOURS),
        MIXED[0],
    ]
    alone = [plain(results_of(runner, grammars, [sampling])[1])[0] for sampling in work]
    assert plain(results_of(runner, grammars, work)[1]) == alone
    for ids, _, reason in (alone[0], alone[2]):
        assert reason == "stop"
        assert set(json.loads(tokenizer.decode(ids))) <= {"red", "green"}
    assert tokenizer.decode(alone[3][0]).startswith('{"name": "')
    growing = Sampling(max_tokens=200, temperature=1, seed=1, grammar=GROWING)
    assert "too many" in results_of(runner, grammars, [growing])[1][0][2].refusal


# Through the loop and its sockets.


def test_a_grammar_is_accepted_before_the_first_token_and_a_refused_one_is_the_callers_fault(
    native: NativeRunner, start_loop: StartLoop, client: EngineClient, tokenizer: Tokenizer
) -> None:
    start_loop(native)
    wait_for(lambda: client.status().ready)
    generation = client.submit(PARIS, MIXED[0], "alice")
    ids, finished = read_all(generation)
    assert generation.is_accepted
    assert finished.reason == "stop"
    assert json.loads(tokenizer.decode(ids))["name"]
    refused = client.submit(PARIS, constrained({"not": {}}), "alice")
    plain = client.submit(PARIS, Sampling(max_tokens=3, temperature=0), "alice")
    for _ in range(2):  # whoever reads again gets the same
        with pytest.raises(InvalidRequest, match='the schema uses "not"') as caught:
            read_all(refused)
        assert (caught.value.param, caught.value.code) == ("response_format", "invalid_value")
    assert not refused.is_accepted
    assert plain.is_accepted
    assert len(read_all(plain)[0]) == 3


def test_a_grammar_that_fails_later_is_the_callers_fault_too(
    native: NativeRunner, start_loop: StartLoop, client: EngineClient
) -> None:
    start_loop(native)
    wait_for(lambda: client.status().ready)
    growing = Sampling(max_tokens=200, temperature=1.5, grammar=GROWING)
    with pytest.raises(InvalidRequest, match="too many"):
        read_all(client.submit(PARIS, growing, "alice"))


def test_a_cancelled_sequence_is_not_compiled_for(
    native: NativeRunner, start_loop: StartLoop, client: EngineClient
) -> None:
    """The vocabulary is read for the first, so the others wait."""
    start_loop(native)
    wait_for(lambda: client.status().ready)
    generations = [client.submit(PARIS, MIXED[0], "alice") for _ in range(3)]
    for generation in generations[1:]:
        generation.cancel()
    assert [read_all(generation)[1].reason for generation in generations] == ["stop", "cancelled", "cancelled"]
    assert client.status().num_waiting == 0


def constrained(schema: object) -> Sampling:
    return Sampling(max_tokens=10, temperature=0, grammar=Grammar("json_schema", json.dumps(schema)))
