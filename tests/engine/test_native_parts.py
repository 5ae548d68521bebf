"""The native runner's parts: pages, choosing, the largest logits, and weight files of every kind against fp32 torch."""

import ctypes
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.engine.runners.choice import choose, load_runner
from chatsvc.engine.runners.native import library
from chatsvc.engine.runners.native.choosing import Chooser
from chatsvc.engine.runners.native.drafts import Drafter
from chatsvc.engine.runners.native.filling import fill
from chatsvc.engine.runners.native.library import Capacity, Floats, Model, Output, Rows
from chatsvc.engine.runners.native.pages import Pages
from chatsvc.engine.runners.native.sequences import Member, fillers
from chatsvc.engine.runners.native.weights import NotServed, obstacle, open_weights
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.errors import ModelFailed, OperatorError
from chatsvc.models.formats import rope
from tests.engine.conftest import StartLoop, read_all, wait_for
from tests.engine.filemodel import make_card
from tests.engine.truth import model_of
from tests.models.ggufs import tiny_gguf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(library.missing()), reason=f"the native runner does not run here: {library.missing()}"),
]

SHAPE: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
}
MODELS: dict[str, Callable[..., Any]] = {
    "qwen2": lambda **change: Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, **change}, tie_word_embeddings=True)),
    "qwen2-all-heads": lambda **change: Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, "num_key_value_heads": 4, **change})),
    "llama": lambda **change: LlamaForCausalLM(LlamaConfig(**{**SHAPE, **change})),
    "llama-128": lambda **change: LlamaForCausalLM(LlamaConfig(**{**SHAPE, **change}, head_dim=128)),
}


def write(folder: Path, name: str, dtype: torch.dtype = torch.float32, **change: int) -> Path:
    torch.manual_seed(1)
    model = MODELS[name](**change)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.to(dtype).save_pretrained(folder)
    return folder


def logits_of(path: Path, ids: list[int]) -> np.ndarray[Any, Any]:
    weights = open_weights(path)
    model = Model(weights.shape, Capacity(max_tokens=256, max_rows=256, num_pages=8, num_threads=2))
    fill(model, weights)
    return model.forward([Rows(ids, 0, list(range(8)))], range(len(ids)))


def truth_of(path: Path, ids: list[int]) -> np.ndarray[Any, Any]:
    where = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def assert_alike(ours: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> None:
    """Bytes instead of floats move a logit by about a hundredth of what logits differ by."""
    assert ours.shape == truth.shape
    assert np.abs(ours - truth).mean() < 0.03 * truth.std()
    assert np.corrcoef(ours.ravel(), truth.ravel())[0, 1] > 0.999


IDS = [(7 * number * number + 3) % 500 for number in range(200)]


@pytest.mark.parametrize("name", MODELS)
def test_it_says_what_torch_says(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    assert_alike(logits_of(path, IDS), truth_of(path, IDS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    path = write(tmp_path, "qwen2", dtype)
    assert_alike(logits_of(path, IDS), truth_of(path, IDS))


def test_shards_are_one_model(tmp_path: Path) -> None:
    path = write(tmp_path, "llama")
    whole = logits_of(path, IDS)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        save_file({name: tensors[name] for name in names}, path / f"model-0000{number + 1}-of-00002.safetensors")
    assert np.array_equal(logits_of(path, IDS), whole)


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "beta_fast": 16,
        "truncate": False,
    },
}


def with_rope(folder: Path, **keys: Any) -> Path:
    """The keys of the rotary embedding in config.json, and no others."""
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling", "rope_theta")}
    (folder / "config.json").write_text(json.dumps({**kept, **keys}))
    return folder


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_rotary_embeddings_are_those_of_transformers(tmp_path: Path, scaling: str) -> None:
    path = with_rope(write(tmp_path, "llama"), rope_parameters={"rope_theta": 10000.0, **SCALINGS[scaling]})
    truth = truth_of(path, IDS)
    assert_alike(logits_of(path, IDS), truth)
    plain = logits_of(with_rope(path, rope_theta=10000.0), IDS)
    assert np.abs(plain - truth).mean() > 0.1 * truth.std()


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_scaling": None, "rope_theta": 20000.0},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 64},
    ],
)
def test_old_and_new_keys_have_the_precedence_of_transformers(tmp_path: Path, keys: dict[str, Any]) -> None:
    path = with_rope(write(tmp_path, "qwen2"), **keys)
    assert_alike(logits_of(path, IDS), truth_of(path, IDS))


CASES = Path(os.environ.get("CHATSVC_CASES") or Path(__file__).parents[3] / "shared" / "cases")
with_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not here; CHATSVC_CASES may name the folder")
GGUF_SCALINGS = {
    "rope-linear": SCALINGS["linear"],
    "rope-old": SCALINGS["linear"],
    "rope-yarn": {**SCALINGS["yarn"], "original_max_position_embeddings": 128},
    "qkvbias": {},
    "l3-eot": {},
    "gg-q-BF16": {},
    "gg-q-Q5_0": {},
    "gg-latin1": {},
}


@with_cases
@pytest.mark.parametrize("name", GGUF_SCALINGS)
def test_gguf_files_that_were_served_wrongly_are_what_transformers_makes_of_them(name: str) -> None:
    path = CASES / f"{name}.gguf"
    with torch.inference_mode():
        model = model_of(path, GGUF_SCALINGS[name])
        truth = model(torch.tensor([[one % 370 for one in IDS]])).logits[0].numpy()
    ours = logits_of(path, [one % 370 for one in IDS])
    assert np.abs(ours - truth).mean() < 0.08 * truth.std()
    assert np.corrcoef(ours.ravel(), truth.ravel())[0, 1] > 0.995
    if name.startswith("rope"):
        with torch.inference_mode():
            plain = model_of(path)(torch.tensor([[one % 370 for one in IDS]])).logits[0].numpy()
        assert np.abs(ours - plain).mean() > 0.2 * truth.std()


@with_cases
def test_openvino_is_asked_the_same_questions() -> None:
    for name in ("rope-linear", "rope-old", "rope-yarn", "qkvbias", "attbias"):
        with pytest.raises(OperatorError, match=r"rotary|biases|bias"):
            choose(CASES / f"{name}.gguf", "gguf", "openvino")
    with pytest.raises(OperatorError, match="bias of the attention output"):
        choose(CASES / "attbias.gguf", "gguf", "auto")


def test_frequencies_that_a_gguf_file_divides_are_llama3s(tmp_path: Path) -> None:
    """llama.cpp's conversion puts Llama 3.1's scaling into a tensor of factors."""
    scaled = rope.of_config({"rope_parameters": SCALINGS["llama3"], "max_position_embeddings": 1024}, 64)
    plain = rope.of_config({}, 64)
    factors = np.array(plain.frequencies) / np.array(scaled.frequencies)
    found = rope.of_gguf({}, 64, factors.tolist())
    assert np.allclose(found.frequencies, scaled.frequencies, rtol=1e-6)
    assert found.scaling


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1", "BF16", "Q5_0", "Q5_1"])
def test_gguf_files_of_each_kind_are_read(tmp_path: Path, kind: str) -> None:
    source = tiny_gguf(tmp_path / "f16.gguf", heads=1)
    path = source if kind == "F16" else requantised(source, tmp_path / "model.gguf", kind)
    ids = [number % 400 for number in IDS]
    assert_alike(logits_of(path, ids), truth_of(path, ids))


def requantised(source: Path, target: Path, kind: str) -> Path:
    """The same file with its matrices in another type, written by the gguf package."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "qwen2")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            value = field.contents()
            kinds = [field.types[0], *(field.types[1:2] if field.types[0] == gguf.GGUFValueType.ARRAY else [])]
            writer.add_key_value(field.name, value, kinds[0], sub_type=kinds[1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if numbers.ndim == 1:
            writer.add_tensor(tensor.name, numbers)
        else:
            wanted = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(tensor.name, gguf.quants.quantize(numbers, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "phi3"}, "architecture phi3"),
        ({"hidden_act": "gelu"}, "activation"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": None, "rope_scaling": {"type": "longrope"}}, "longrope"),
        ({"use_sliding_window": True, "layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ({"head_dim": 32}, "heads of 32"),
        ({"intermediate_size": 100}, "multiple of 64"),
        ({"num_attention_heads": 5, "head_dim": 64}, "evenly"),
        ({"hidden_act": "silu", "model_type": "mixtral"}, "mixtral"),
    ],
)
def test_what_it_does_not_compute_it_leaves_to_others(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = write(tmp_path, "qwen2")
    assert obstacle(path) == ""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **change}))
    assert reason in obstacle(path)
    with pytest.raises(NotServed, match=reason):
        open_weights(path)
    kind, why = choose(path, "safetensors", "auto")
    assert kind == "torch"
    assert reason in why
    with pytest.raises(OperatorError, match=reason):
        choose(path, "safetensors", "native")


def test_gguf_files_it_does_not_compute(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "a.gguf")
    assert "heads of 16 numbers" in obstacle(tmp_path / "a.gguf")
    kind, why = choose(tmp_path / "a.gguf", "gguf", "auto")
    assert kind == "openvino"
    assert "native does not" in why


def test_a_bias_that_it_would_leave_out_is_not_served(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True)).save_pretrained(tmp_path)
    assert "bias of the attention output" in obstacle(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"num_attention_heads": 0}, {"num_hidden_layers": -1}, {"vocab_size": 1 << 40}, {"num_hidden_layers": 1 << 20}],
)
def test_sizes_that_no_model_has_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    path = write(tmp_path, "qwen2")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(OperatorError, match="cannot be read"):
        open_weights(path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"model_type": "qwen2"}', "nonsense"])
def test_a_broken_folder_is_refused(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, "qwen2")
    (path / "config.json").write_text(content)
    with pytest.raises(OperatorError, match="cannot be read"):
        open_weights(path)


def test_double_precision_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "qwen2", torch.float64)
    assert_alike(logits_of(path, IDS), truth_of(path, IDS))


def test_other_numbers_are_left_to_others_where_they_take_part(tmp_path: Path) -> None:
    path = write(tmp_path, "qwen2")
    tensors = load_file(path / "model.safetensors")
    whole = logits_of(path, IDS)
    more = {"vision.patches": torch.zeros(3, 5, dtype=torch.int8), "scalar": torch.tensor(1.0)}
    save_file({**tensors, **more}, path / "model.safetensors")
    assert np.array_equal(logits_of(path, IDS), whole)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, path / "model.safetensors")
    assert "I8" in obstacle(path)


def test_a_base_models_file_lacks_the_prefix(tmp_path: Path) -> None:
    path = write(tmp_path, "qwen2")
    whole = logits_of(path, IDS)
    tensors = load_file(path / "model.safetensors")
    save_file({name.removeprefix("model."): one for name, one in tensors.items()}, path / "model.safetensors")
    assert np.array_equal(logits_of(path, IDS), whole)
    assert_alike(whole, truth_of(path, IDS))


def test_a_processor_without_vnni_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "_NEEDED_FLAGS", library._NEEDED_FLAGS | {"avx1024"})
    assert library.missing() == "the processor has no avx1024"
    kind, why = choose(tiny_gguf(tmp_path / "a.gguf", heads=1), "gguf", "auto")
    assert (kind, "avx1024" in why) == ("openvino", True)
    with pytest.raises(OperatorError, match="avx1024"):
        load_runner(tmp_path / "a.gguf", "gguf", make_card(), RunnerOptions(kind="native"))


def test_a_package_without_the_library_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "_PATH", tmp_path / "_native.so")
    assert "not compiled" in library.missing()


TINY = library.Shape(64, 64, 64, 64, 64, 64, 100, 1e-6, [1.0] * 32, 1.0, has_bias=False, is_tied=True)


@pytest.fixture
def reloaded() -> Iterator[None]:
    """The library is loaded anew in the test, and after it."""
    library._library.cache_clear()
    yield
    library._library.cache_clear()


@pytest.mark.usefixtures("reloaded")
def test_a_library_of_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PAGE_TOKENS", 64)
    with pytest.raises(OperatorError, match=r"another version .*PAGE_TOKENS is 32 there and 64 here"):
        library.page_bytes(TINY)


@pytest.mark.usefixtures("reloaded")
def test_a_struct_of_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(library._Batch):
        _fields_: ClassVar = [("more", ctypes.c_int32)]

    monkeypatch.setattr(library, "_Batch", Longer)
    with pytest.raises(OperatorError, match="model_batch"):
        library.page_bytes(TINY)


@pytest.mark.usefixtures("reloaded")
def test_a_library_that_does_not_tell_its_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_PATH", Path("libm.so.6"))
    with pytest.raises(OperatorError, match="None there"):
        library.page_bytes(TINY)


def test_memory_that_is_not_there_is_refused() -> None:
    with pytest.raises(OperatorError, match="not enough memory"):
        Model(TINY, Capacity(max_tokens=128, max_rows=16, num_pages=2**31 - 1, num_threads=1))


def assert_largest(found: Output, logits: Floats, count: int) -> None:
    """Of equal ones the smaller id comes first."""
    expected = np.lexsort((np.arange(len(logits)), -logits))[:count]
    assert found.ids.tolist() == expected.tolist()
    assert np.array_equal(found.logits, logits[expected])


@pytest.mark.parametrize("name", ["qwen2", "llama"])
@pytest.mark.parametrize("vocab_size", [500, 512, 5003])  # the last panel is full, or is not
def test_the_largest_logits_are_the_largest_of_all(tmp_path: Path, name: str, vocab_size: int) -> None:
    weights = open_weights(write(tmp_path, name, vocab_size=vocab_size))
    model = Model(weights.shape, Capacity(max_tokens=256, max_rows=256, num_pages=8, num_threads=2))
    fill(model, weights)
    batch = [Rows(IDS, 0, list(range(8)))]
    logits = model.forward(batch, range(40)).copy()
    # A few at a time, then only what may be among the largest is computed; or all at once.
    for outputs in ([0], [1, 2], [3, 4, 5, 6, 7, 8, 9, 10], list(range(40))):
        for count in (1, 2, 16, 40, 500, vocab_size, vocab_size + 1):
            for row, output in zip(outputs, model.forward_largest(batch, outputs, [count] * len(outputs)), strict=True):
                assert_largest(output, logits[row], count)
        counts = [(1, 0, 7)[row % 3] for row in outputs]
        for row, count, output in zip(outputs, counts, model.forward_largest(batch, outputs, counts), strict=True):
            if count:
                assert_largest(output, logits[row], count)
            else:
                assert np.array_equal(output.logits, logits[row])


@pytest.mark.parametrize("sign", [-1, 1])
def test_equal_logits_come_in_the_order_of_their_ids(tmp_path: Path, sign: int) -> None:
    """Every logit is the same, in some places all are below zero: more than the empty places of the last panel have."""
    path = write(tmp_path, "llama", vocab_size=5003)
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"][:] = sign * weights["lm_head.weight"][0]
    save_file(weights, path / "model.safetensors")
    weights = open_weights(path)
    model = Model(weights.shape, Capacity(max_tokens=256, max_rows=256, num_pages=8, num_threads=2))
    fill(model, weights)
    found = [model.forward_largest([Rows(IDS, 0, list(range(8)))], [row], [3])[0] for row in range(40)]
    assert all(output.ids.tolist() == [0, 1, 2] for output in found)
    assert {bool(output.logits[0] < 0) for output in found} == {True, False}


def test_company_chunks_and_threads_change_no_bit_of_a_logit(tmp_path: Path) -> None:
    weights = open_weights(write(tmp_path, "qwen2"))
    others = [Rows([9, 8, 7], 0, [8]), Rows([number % 500 for number in range(40)], 0, [9, 10])]
    found = []
    for num_threads, chunk in ((1, 200), (2, 200), (2, 64), (3, 37)):
        model = Model(weights.shape, Capacity(max_tokens=256, max_rows=256, num_pages=16, num_threads=num_threads))
        fill(model, weights)
        for start in range(0, 200, chunk):
            rows = Rows(IDS[start : start + chunk], start, list(range(8)))
            company = others if num_threads > 1 else []
            behind = sum(len(other.ids) for other in company) + len(rows.ids) - 1
            logits = model.forward([*company, rows], [behind])[0].copy()
        found.append(logits)
    assert all(np.array_equal(logits, found[0]) for logits in found)


def test_which_logits_are_asked_for_changes_no_bit_of_them(tmp_path: Path) -> None:
    weights = open_weights(write(tmp_path, "qwen2"))
    model = Model(weights.shape, Capacity(max_tokens=256, max_rows=256, num_pages=16, num_threads=2))
    fill(model, weights)
    batch = [Rows(IDS, 0, list(range(8))), Rows(IDS[:30], 0, [8])]
    every = model.forward(batch, range(len(IDS) + 30)).copy()
    for asked in ([0], [3, 17, 18, 19, len(IDS) - 1, len(IDS), len(IDS) + 29], range(10, 60)):
        assert np.array_equal(model.forward(batch, asked), every[list(asked)])
    model.forward(batch, [])
    following = [Rows([7], len(IDS), list(range(8)))]
    expected = model.forward(following, [0]).copy()
    model.clear_cache()
    model.forward(batch, [])  # nothing but the cache is wanted of these
    assert np.array_equal(model.forward(following, [0]), expected)
    for asked in ([3, 2], [3, 3], [-1, 2], [len(IDS) + 30]):
        with pytest.raises(ValueError, match="ascend"):
            model.forward(batch, asked)


def test_a_pass_knows_where_its_time_went(tmp_path: Path) -> None:
    weights = open_weights(write(tmp_path, "qwen2"))
    model = Model(weights.shape, Capacity(max_tokens=256, max_rows=256, num_pages=8, num_threads=2))
    fill(model, weights)
    assert set(model.seconds().values()) == {0.0}
    started = time.perf_counter()
    model.forward([Rows(IDS, 0, list(range(8)))], [len(IDS) - 1])
    whole_s = time.perf_counter() - started
    assert all(seconds > 0 for seconds in model.seconds().values())
    assert sum(model.seconds().values()) < whole_s


# numbers that are not finite


def spoilt(path: Path, name: str, row: int, value: float) -> Path:
    """A weight that the check at import would refuse."""
    tensors = load_file(path / "model.safetensors")
    tensors[name][row] = value
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def endings(runner: Any, prompts: Sequence[Sequence[int]], **values: Any) -> list[tuple[list[int], str, str]]:
    """Ids, reason and detail of each, all at once."""
    for number, ids in enumerate(prompts):
        runner.add(number, ids, Sampling(max_tokens=6, ignore_eos=True, **values), "")
    found: dict[int, tuple[list[int], str, str]] = {number: ([], "", "") for number in range(len(prompts))}
    while any(not reason for _, reason, _ in found.values()):
        for output in runner.step():
            ids, *_ = found[output.sequence_id]
            found[output.sequence_id] = ([*ids, *output.token_ids], output.finish_reason or "", output.detail)
    return list(found.values())


@pytest.mark.parametrize("kind", ["native", "torch"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_ends_its_sequence_and_no_other(tmp_path: Path, kind: Any, value: float) -> None:
    """The embedding of one token is spoilt: whoever uses it has no answer."""
    path = write(tmp_path / "model", "llama")
    options = RunnerOptions(kind=kind, num_threads=1, prefill_chunk_tokens=64)
    good = [[5, 6, 7], [8, 9, *range(100, 150)]]
    bad = [[5, 499], [499, *range(100, 140)], [*range(200, 290), 499, 7]]
    for values in (
        {"temperature": 0},
        {"temperature": 1, "seed": 4, "repetition_penalty": 1.1, "logit_bias": {499: -100}},
    ):
        expected = endings(load_runner(path, "safetensors", make_card(context_length=512), options), good, **values)
        spoilt(path, "model.embed_tokens.weight", 499, value)
        runner = load_runner(path, "safetensors", make_card(context_length=512), options)
        results = endings(runner, [*good, *bad], **values)
        assert [reason for _, reason, _ in results[2:]] == ["error"] * 3
        assert all("not finite" in detail and not ids for ids, _, detail in results[2:])
        assert results[:2] == expected
        assert endings(runner, good, **values) == expected
        assert runner.cache_usage() == 0
        spoilt(path, "model.embed_tokens.weight", 499, 0.01)


def test_an_engine_lives_on_and_tells_the_one_whose_row_is_not_finite(
    tmp_path: Path, start_loop: StartLoop, client: EngineClient
) -> None:
    path = spoilt(write(tmp_path / "model", "llama"), "model.embed_tokens.weight", 499, float("nan"))
    options = RunnerOptions(kind="native", num_threads=1)
    engine = start_loop(load_runner(path, "safetensors", make_card(context_length=512), options))
    wait_for(lambda: client.status().ready)
    long = Sampling(max_tokens=200, seed=1, ignore_eos=True, logit_bias={499: -100.0})
    expected, _ = read_all(client.submit([5, 6, 7], long, "alice"))
    going_on = client.submit([5, 6, 7], long, "alice")
    with pytest.raises(ModelFailed):
        read_all(client.submit([5, 499, 7], long, "bob"))
    assert read_all(going_on)[0] == expected
    assert engine.failure is None


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_a_weight_that_everybody_needs_ends_all_however_many_logits_are_wanted(tmp_path: Path, name: str) -> None:
    path = spoilt(write(tmp_path, "llama"), name, -1, float("nan"))
    options = RunnerOptions(kind="native", num_threads=1)
    runner = load_runner(path, "safetensors", make_card(context_length=512), options)
    for values in ({"temperature": 0}, {"temperature": 1}, {"temperature": 0, "num_logprobs": 2}):
        for number in (1, 12):  # few rows look for the largest logits, many compute all
            assert {reason for _, reason, _ in endings(runner, [[5, 6, 7]] * number, **values)} == {"error"}
    with pytest.raises(OperatorError, match="not finite"):
        runner.warm_up()


# choosing


def chosen(sampling: Sampling, logits: list[float], count: int = 1) -> Counter[int]:
    """What is chosen from as many of the largest logits as the chooser asks for."""
    chooser = Chooser(sampling)
    values = np.array(logits, dtype=np.float32)
    order = np.argsort(-values, kind="stable").astype(np.int32)
    tokens: Counter[int] = Counter()
    for _ in range(count):
        some = order[: chooser.num_needed(0)] if chooser.num_needed(0) else np.arange(len(values), dtype=np.int32)
        tokens[chooser.choose(Output(some, values[some])).token] += 1
    return tokens


LOGITS = [0.0, 2.0, 1.0, -1.0, 0.5]


def test_temperature_shapes_the_frequencies() -> None:
    counts = chosen(Sampling(max_tokens=1, temperature=0.7, seed=1), LOGITS, 20_000)
    weights = np.exp(np.array(LOGITS) / 0.7)
    for token, weight in enumerate(weights / weights.sum()):
        assert counts[token] / 20_000 == pytest.approx(weight, abs=0.015)


def test_top_p_and_top_k_keep_the_likeliest() -> None:
    assert set(chosen(Sampling(max_tokens=1, top_k=2, seed=1), LOGITS, 500)) == {1, 2}
    assert set(chosen(Sampling(max_tokens=1, top_p=0.1, seed=1), LOGITS, 500)) == {1}
    assert set(chosen(Sampling(max_tokens=1, top_p=0.8, seed=1), LOGITS, 500)) == {1, 2, 4}
    assert set(chosen(Sampling(max_tokens=1, top_k=0, seed=1), LOGITS, 2000)) == {0, 1, 2, 3, 4}
    assert set(chosen(Sampling(max_tokens=1, top_k=1, temperature=2), LOGITS, 50)) == {1}


def test_penalties_lower_what_was_chosen() -> None:
    assert chosen(Sampling(max_tokens=9, temperature=0), LOGITS, 5) == {1: 5}
    presence = chosen(Sampling(max_tokens=9, temperature=0, presence_penalty=1.2), LOGITS, 2)
    assert presence == {1: 1, 2: 1}
    frequency = Sampling(max_tokens=9, temperature=0, frequency_penalty=0.6)
    assert chosen(frequency, LOGITS, 3) == {1: 2, 2: 1}
    raising = Sampling(max_tokens=9, temperature=0, presence_penalty=-1.5)
    assert chosen(raising, LOGITS, 5) == {1: 5}
    both = Sampling(max_tokens=9, temperature=0, presence_penalty=2.5, frequency_penalty=-0.6)
    assert chosen(both, LOGITS, 4) == {1: 2, 2: 1, 4: 1}


# pages


def take(pages: Pages, count: int) -> list[int]:
    assert pages.promise(count)
    return [pages.take() for _ in range(count)]


def test_pages_are_taken_given_back_and_taken_again() -> None:
    pages = Pages(3)
    taken = take(pages, 2)
    assert pages.num_used == 2
    assert not pages.promise(2)
    assert pages.num_used == 2
    pages.give_back(taken)
    assert pages.num_used == 0
    assert sorted(take(pages, 3)) == [0, 1, 2]


def test_what_is_promised_is_nobody_elses_and_keeps_what_is_there_until_it_is_taken() -> None:
    pages = Pages(3)
    (one,) = take(pages, 1)
    pages.name(one, b"1")
    pages.give_back([one])
    assert pages.promise(3)
    assert pages.num_used == 3
    assert not pages.promise(1)
    assert pages.share([b"1"]) == [one]  # still there: but whoever takes it away must give it back
    assert not pages.promise(0)
    pages.give_back([one])
    assert {pages.take(), pages.take()} == {1, 2}
    assert pages.share([b"1"]) == [one]
    pages.give_back([one])
    pages.give_back([1, 2])
    pages.release(1)
    assert pages.num_used == 0


def test_pages_that_were_used_before_are_taken_before_others() -> None:
    pages = Pages(4)
    first = take(pages, 2)
    assert first == [0, 1]
    assert pages.num_ever_used == 2
    pages.give_back(first)
    assert sorted(take(pages, 3)) == [0, 1, 2]
    assert pages.num_ever_used == 3
    assert pages.num_free == 1


def test_named_pages_are_shared_kept_and_at_last_given_away_oldest_first() -> None:
    pages = Pages(3)
    one, two = take(pages, 2)
    pages.name(one, b"1")
    pages.name(two, b"2")
    assert pages.share([b"1", b"other", b"2"]) == [one]
    pages.give_back([one, two])
    assert pages.num_used == 1
    pages.give_back([one])
    assert pages.num_used == 0
    take(pages, 2)  # the free one, and the end of the prefix before its beginning
    assert pages.share([b"2"]) == []
    assert pages.share([b"1"]) == [one]


def test_of_two_pages_with_one_name_the_first_is_shared() -> None:
    pages = Pages(4)
    one, two = take(pages, 2)
    pages.name(one, b"same")
    pages.name(two, b"same")
    pages.give_back([two])
    assert pages.share([b"same"]) == [one]
    assert len(take(pages, 3)) == 3


def test_a_page_may_have_several_names_and_loses_all_at_once() -> None:
    pages = Pages(1)
    (one,) = take(pages, 1)
    pages.name(one, b"beginning")
    pages.name(one, b"whole")
    pages.name(one, b"whole")
    assert pages.share([b"beginning"]) == pages.share([b"whole"]) == [one]
    for _ in range(3):
        pages.give_back([one])
    assert take(pages, 1) == [one]
    assert pages.share([b"beginning"]) == pages.share([b"whole"]) == []


def member(number: int, ids: Sequence[int], key: str = "alice", num_public: int = 0) -> Member:
    chooser = Chooser(Sampling(max_tokens=10, temperature=0))
    return Member(number, list(ids), len(ids), 10, key, chooser, Drafter(list(ids), 0), num_public)


def test_of_those_that_fill_a_page_next_the_shortest_does_and_takes_the_place_of_the_oldest() -> None:
    ids = range(100)
    long, other, short = member(1, ids), member(2, ids, "bob"), member(3, ids[:70])
    assert fillers([long, other, short]) == [short, other]
    short.num_held = 5  # in the middle of the page
    assert fillers([long, other, short]) == [short, other]
    short.take_over([7])
    assert fillers([long, other, short]) == [long, other, short]
    tiny = [member(4, ids[:20]), member(5, ids[:20])]
    assert fillers(tiny) == tiny  # they fill no page


def test_names_part_where_nobodys_words_end() -> None:
    ids = range(100)
    one, other = member(1, ids, "alice", 40), member(2, ids, "bob", 40)
    assert one.prompt_names[0] == other.prompt_names[0]
    assert one.public_rest == other.public_rest
    assert not set(one.prompt_names[1:]) & set(other.prompt_names[1:])
    assert not set(one.prompt_names) & set(member(3, ids).prompt_names)
    assert member(4, ids, "", 0).prompt_names[0] != one.prompt_names[0]  # no key is not everybody's
    assert member(5, ids, "alice", 41).public_rest != one.public_rest
    assert member(6, ids, "alice", 64).public_rest is None


def test_a_page_that_is_full_has_the_name_that_a_prompt_like_it_looks_for() -> None:
    ids = range(200)
    for num_public in (0, 20, 32, 40, 70):
        grown = member(1, ids[:30], "alice", num_public)
        grown.ids += ids[30:]
        asked = member(2, ids, "alice", min(num_public, 29))
        assert [grown.name_next_page() for _ in range(6)] == asked.prompt_names


def test_a_copied_folder_is_not_needed_once_it_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "model", "qwen2")
    runner = load_runner(
        path, "safetensors", make_card(context_length=512), RunnerOptions(kind="native", num_threads=1)
    )
    shutil.rmtree(path)
    runner.warm_up()
    runner.add(1, [5, 6, 7], Sampling(max_tokens=1, temperature=0), "")
    assert len(runner.step()) == 1


# guesses


def test_a_guess_is_what_followed_the_last_time() -> None:
    ids = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3]
    drafter = Drafter(ids, 7)
    assert drafter.propose(7) == [4, 5]  # short at first
    drafter.learn(2, 2)
    assert drafter.propose(7) == [4, 5, 6, 9, 1]
    assert drafter.propose(3) == [4, 5, 6]
    drafter.learn(5, 0)
    assert drafter.propose(7) == [4]
    ids.append(8)
    assert drafter.propose(7) == []
    ids += [7, 7, 1, 2, 3]
    assert drafter.propose(7) == [8]  # the latest of several


def test_no_guess_without_a_past_or_a_wish() -> None:
    assert Drafter([1, 2], 7).propose(7) == []
    assert Drafter([1, 2, 3, 1, 2, 3], 0).propose(7) == []
    assert Drafter([1, 2, 3, 1, 2, 3], 7).propose(0) == []
    assert Drafter([1, 2, 3, 1, 2, 3], 7).propose(-3) == []
