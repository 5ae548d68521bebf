"""What is taken in from folders that people have, and what is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from chatsvc.disk.files import check_sizes
from chatsvc.engine.runners.choice import choose
from chatsvc.errors import OperatorError
from chatsvc.models.card import SamplingDefaults
from chatsvc.models.formats import finite
from chatsvc.models.store import ModelStore
from chatsvc.models.supply.importing import preferred_gguf, suggested_name
from tests.models.ggufs import tiny_gguf
from tests.shapes import TEMPLATE


@pytest.fixture
def source(tiny_folder: Path, tmp_path: Path) -> Path:
    """A safetensors folder that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "source"))


def _change(path: Path, **values: object) -> None:
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps(content))


def test_texts_come_out_of_the_folders_small_files(store: ModelStore, source: Path):
    card = store.import_path(source).card()
    assert card.chat_template == TEMPLATE
    assert card.context_length == 2048
    assert (card.bos_token, card.eos_token) == ("", "<|im_end|>")
    assert len(card.eos_token_ids) == 2


def _recommended(store: ModelStore, source: Path, **values: object) -> SamplingDefaults:
    (source / "generation_config.json").write_text(json.dumps(values))
    name = f"recommended-{len(store.list())}"
    return store.import_path(source, name).card().sampling


def test_how_tokens_are_chosen_comes_from_the_generation_config(store: ModelStore, source: Path):
    qwen = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    given = _recommended(store, source, do_sample=True, max_new_tokens=2048, **qwen)
    assert given == SamplingDefaults(**qwen)
    assert _recommended(store, source, min_p=0.05) == SamplingDefaults(min_p=0.05)
    useless = {"temperature": 0.0, "top_p": 0, "top_k": -1, "min_p": 7, "repetition_penalty": "1.1"}
    assert _recommended(store, source, **useless) == SamplingDefaults()  # never a silent 0
    assert _recommended(store, source, temperature=True, top_k=None) == SamplingDefaults()


def test_a_gguf_file_may_say_how_tokens_are_chosen_itself_and_counts_first(store: ModelStore, tmp_path: Path):
    path = tiny_gguf(tmp_path / "model.gguf", sampling={"temp": 0.6, "top_k": 30, "penalty_repeat": 1.1})
    card = store.import_path(path, "file").card().sampling
    assert (card.temperature, card.top_k, card.repetition_penalty) == pytest.approx((0.6, 30, 1.1))
    beside = _recommended(store, tmp_path, temperature=0.9, top_p=0.8)
    assert (beside.temperature, beside.top_p, beside.top_k) == pytest.approx((0.6, 0.8, 30))


def test_a_template_file_wins_over_the_tokenizers_configuration(store: ModelStore, source: Path):
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert store.import_path(source).card().chat_template == "{{ messages[0].content }}"


def test_of_several_templates_the_default_one_is_taken(store: ModelStore, source: Path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    _change(source / "tokenizer_config.json", chat_template=named)
    assert store.import_path(source).card().chat_template == "yes"


def test_a_model_without_template_and_chatml_is_refused(store: ModelStore, source: Path):
    _change(source / "tokenizer_config.json", chat_template=None)
    content = (source / "tokenizer.json").read_text().replace("<|im_start|>", "<|other|>")
    (source / "tokenizer.json").write_text(content)
    with pytest.raises(OperatorError, match=r"chat_template\.jinja"):
        store.import_path(source)


def test_tokens_given_as_objects_are_understood(store: ModelStore, source: Path):
    _change(
        source / "tokenizer_config.json", bos_token={"content": "<|endoftext|>"}, eos_token={"content": "<|im_end|>"}
    )
    card = store.import_path(source).card()
    assert (card.bos_token, card.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_control_tokens_that_were_not_marked_become_special(store: ModelStore, source: Path):
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = False
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    imported = json.loads(store.import_path(source).card().tokenizer_json)
    assert all(token["special"] for token in imported["added_tokens"])


def test_a_model_that_never_ends_is_refused(store: ModelStore, source: Path):
    for name in ("config.json", "generation_config.json"):
        _change(source / name, eos_token_id=None)
    _change(source / "tokenizer_config.json", eos_token=None)
    content = (source / "tokenizer.json").read_text().replace("<|im_start|>", "<|other|>")
    (source / "tokenizer.json").write_text(content)
    with pytest.raises(OperatorError, match="which token ends"):
        store.import_path(source)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", b"{}", "cannot be read"),
        ("tokenizer.json", b'{"added_tokens": []}', "cannot be read"),
        ("tokenizer_config.json", b"[]", "not a JSON object"),
        ("config.json", b"{}", "max_position_embeddings"),
        ("config.json", None, "max_position_embeddings"),
        ("config.json", b" " * (5 << 20), "larger than"),
        ("model.safetensors", b"\x80\x04.", "not a safetensors file"),
        ("model.safetensors", b"\x02" + bytes(7) + b"{}", "not a safetensors file"),
    ],
)
def test_a_damaged_folder_is_refused_with_its_reason(
    store: ModelStore, source: Path, file: str, content: bytes | None, message: str
):
    (source / file).unlink()
    if content is not None:
        (source / file).write_bytes(content)
    with pytest.raises(OperatorError, match=message):
        store.import_path(source)
    assert store.list() == []


def test_safetensors_that_are_cut_off_are_refused(store: ModelStore, source: Path):
    os.truncate(source / "model.safetensors", (source / "model.safetensors").stat().st_size - 1)
    with pytest.raises(OperatorError, match="cut off"):
        store.import_path(source)


def test_pickles_and_code_beside_safetensors_stay_outside(store: ModelStore, source: Path):
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (source / "modeling.py").write_text("import os")
    names = {path.name for path in store.import_path(source).path.iterdir()}
    assert not names & {"pytorch_model.bin", "modeling.py"}


def test_a_folder_of_pickles_is_refused(store: ModelStore, tmp_path: Path):
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(OperatorError, match="never opened"):
        store.import_path(tmp_path / "pickles")


def test_a_download_cache_of_links_is_copied_by_content(store: ModelStore, source: Path, tmp_path: Path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in source.iterdir():
        (snapshot / path.name).symlink_to(path)
    folder = store.import_path(snapshot)
    assert not any(path.is_symlink() for path in folder.path.iterdir())
    folder.verify(full=True)


def _in_shards(source: Path, *, indexed: bool = True, count: str = "00002") -> dict[str, str]:
    """Cut model.safetensors into two; returns the index' map."""
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), start=1):
        file = f"model-{number:05d}-of-{count}.safetensors"
        save_file({name: tensors[name] for name in names}, source / file)
        weight_map |= dict.fromkeys(names, file)
    if indexed:
        (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_the_index_decides_which_shards_are_the_model(store: ModelStore, source: Path):
    shutil.copy(source / "model.safetensors", source / "older.safetensors")
    _in_shards(source)
    (source / "older.safetensors").rename(source / "model-00001-of-00001.safetensors")
    shutil.copy(source / "model-00001-of-00001.safetensors", source / "model.safetensors")
    folder = store.import_path(source)
    assert folder.description().weights == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = {path.name for path in folder.path.iterdir()}
    assert "model.safetensors.index.json" in names
    assert not names & {"model.safetensors", "model-00001-of-00001.safetensors"}


def test_shards_without_an_index_get_one(store: ModelStore, source: Path):
    weight_map = _in_shards(source, indexed=False)
    folder = store.import_path(source)
    assert json.loads((folder.path / "model.safetensors.index.json").read_text())["weight_map"] == weight_map


def test_a_missing_shard_is_named(store: ModelStore, source: Path):
    _in_shards(source)
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(OperatorError, match=r"model-00002-of-00002\.safetensors is missing"):
        store.import_path(source)
    (source / "model.safetensors.index.json").unlink()
    with pytest.raises(OperatorError, match=r"model-00002-of-00002\.safetensors is missing"):
        store.import_path(source)


def test_shards_of_two_sets_need_an_index(store: ModelStore, source: Path):
    _in_shards(source, indexed=False)
    shutil.copy(source / "model-00001-of-00002.safetensors", source / "model-00001-of-00003.safetensors")
    with pytest.raises(OperatorError, match="2 sets"):
        store.import_path(source)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "not an index"),
        ('{"weight_map": {}}', "names no tensor"),
        ('{"weight_map": {"a": "../keys/secret.safetensors"}}', "no safetensors file of this folder"),
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "but it does not"),
    ],
)
def test_an_index_that_is_none_is_refused(store: ModelStore, source: Path, index: str, message: str):
    _in_shards(source)
    (source / "model.safetensors.index.json").write_text(index)
    with pytest.raises(OperatorError, match=message):
        store.import_path(source)


def test_heads_that_fill_the_memory_are_refused_at_once(source: Path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"head_dim": 10**12}))
    with pytest.raises(OperatorError, match="size of heads"):
        choose(source, "safetensors", "native")


def test_fewer_embeddings_than_the_tokenizer_has_ids_are_refused(store: ModelStore, source: Path):
    tensors = load_file(source / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:400].clone()
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(OperatorError, match="embeddings of 400"):
        store.import_path(source)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_refused(store: ModelStore, source: Path, number: float, dtype: torch.dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    tensors["unused"] = torch.full((3,), float("nan"))
    save_file(tensors, source / "model.safetensors")
    store.import_path(source, "finite")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = number
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(OperatorError, match=r"up_proj\.weight of model\.safetensors holds numbers that are not finite"):
        store.import_path(source, "other")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_scales_that_are_not_finite_are_found_in_every_type(kind: str):
    wanted = gguf.GGMLQuantizationType[kind]
    numbers = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    packed = np.ascontiguousarray(gguf.quants.quantize(numbers, wanted)).view(np.uint8).reshape(-1)
    assert finite.is_finite(kind, packed)
    numbers[2, 100] = np.inf
    with np.errstate(all="ignore"):
        packed = np.ascontiguousarray(gguf.quants.quantize(numbers, wanted)).view(np.uint8).reshape(-1)
    assert not finite.is_finite(kind, packed)


def test_files_that_are_holes_or_too_large_are_refused_before_they_are_read(
    store: ModelStore, gguf_file: Path, tmp_path: Path
):
    huge = Path(shutil.copy(gguf_file, tmp_path / "huge.gguf"))
    os.truncate(huge, 1 << 40)
    with pytest.raises(OperatorError, match="mostly holes"):
        store.import_path(huge)
    with pytest.raises(OperatorError, match="free space"):
        check_sizes([gguf_file] * (shutil.disk_usage(tmp_path).free // gguf_file.stat().st_size + 1), tmp_path)


CASES = Path(os.environ.get("CHATSVC_CASES") or Path(__file__).parents[3] / "shared" / "cases")
with_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not here; CHATSVC_CASES may name the folder")


@with_cases
def test_a_part_of_a_model_alone_is_refused(store: ModelStore, tmp_path: Path):
    path = shutil.copy(CASES / "gg-split-00001-of-00002.gguf", tmp_path)
    with pytest.raises(OperatorError, match=r"gg-split-00002-of-00002\.gguf is missing"):
        store.import_path(Path(path))
    renamed = Path(shutil.copy(path, tmp_path / "renamed.gguf"))
    with pytest.raises(OperatorError, match="part 1 of 2"):
        store.import_path(renamed)


@with_cases
@pytest.mark.parametrize("name", ["gg-latin1", "gg-q-BF16", "gg-q-Q5_0", "rope-yarn"])
def test_files_that_are_common_are_taken_in(store: ModelStore, name: str):
    store.import_path(CASES / f"{name}.gguf", "model").verify(full=True)


def test_a_model_in_parts_becomes_one_file(store: ModelStore, gguf_file: Path, tmp_path: Path):
    """Cut by the tensors, as llama.cpp's gguf-split does."""
    reader = gguf.GGUFReader(gguf_file)
    parts = [tmp_path / f"whole-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, part in enumerate(parts):
        writer = gguf.GGUFWriter(part, "qwen2")
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kinds = [field.types[0], *(field.types[1:2] if field.types[0] == gguf.GGUFValueType.ARRAY else [])]
                writer.add_key_value(
                    field.name, field.contents(), kinds[0], sub_type=kinds[1] if len(kinds) > 1 else None
                )
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        for tensor in reader.tensors[number * 10 : 10 if number == 0 else None]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for given in (parts[1], tmp_path):
        folder = store.import_path(given, f"from-{given.suffix[1:] or 'folder'}")
        whole = gguf.GGUFReader(folder.path / "model.gguf")
        assert "split.count" not in whole.fields
        assert {one.name: one.data.tobytes() for one in whole.tensors} == {
            one.name: one.data.tobytes() for one in reader.tensors
        }


@pytest.mark.parametrize("path", ["/etc/hostname", "/no/such/file", "/dev/null"])
def test_other_files_are_refused(store: ModelStore, path: str):
    with pytest.raises(OperatorError):
        store.import_path(Path(path), "name")


def test_of_several_gguf_files_the_eight_bit_one_is_taken(store: ModelStore, gguf_file: Path, tmp_path: Path):
    folder = tmp_path / "many"
    folder.mkdir()
    for kind in ("Q4_0", "Q8_0", "Q2_K"):
        shutil.copy(gguf_file, folder / f"model-{kind}.gguf")
    assert store.import_path(folder, "many").format == "gguf"
    assert preferred_gguf(sorted(folder.glob("*.gguf"))).name == "model-Q8_0.gguf"
    assert preferred_gguf([Path("only.gguf")]).name == "only.gguf"
    assert preferred_gguf([Path("m-q4_k_s.gguf"), Path("m-q4_k_m.gguf")]).name == "m-q4_k_m.gguf"


@pytest.mark.parametrize(
    ("path", "name"),
    [("Qwen1.5-0.5B Chat.gguf", "qwen1.5-0.5b-chat"), ("模型.gguf", "model"), ("a/Folder_x", "folder_x")],
)
def test_a_name_is_made_of_the_source(path: str, name: str):
    assert suggested_name(Path(path)) == name


def test_a_folder_of_another_store_is_taken_in_as_it_is(store: ModelStore, source: Path, tmp_path: Path):
    _change(source / "tokenizer_config.json", bos_token="<|endoftext|>")
    other = ModelStore(tmp_path / "other" / "models", tmp_path / "other" / "keys")
    theirs = other.import_path(source, "theirs")
    ours = store.import_path(theirs.path, "ours")
    ours.verify(full=True)
    card, expected = ours.card(), theirs.card()
    assert (card.bos_token, card.eos_token, card.revision) == (
        expected.bos_token,
        expected.eos_token,
        expected.revision,
    )
    assert (ours.path / "config.json").exists()


def test_a_damaged_description_of_another_store_is_refused(store: ModelStore, source: Path):
    (source / "model.json").write_text("{}")
    with pytest.raises(OperatorError, match="copy the folder again"):
        store.import_path(source)


def test_a_description_that_names_files_elsewhere_is_refused(store: ModelStore, source: Path, tmp_path: Path):
    other = ModelStore(tmp_path / "other" / "models", tmp_path / "other" / "keys")
    theirs = other.import_path(source, "theirs")
    _change(theirs.path / "model.json", weights=["../keys/model-signing.key"])
    with pytest.raises(OperatorError, match="cannot be a model's name"):
        store.import_path(theirs.path, "ours")
    assert store.list() == []
