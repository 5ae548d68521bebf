"""A model in Qwen1.5-0.5B-Chat's exact shape with random weights: what a step costs depends on the shape alone.

The vocabulary has the true size and the true special ids, but its ordinary tokens are single bytes and fillers: one
ASCII character is one token, so a prompt of n tokens is a text of known length for every server alike. It is written as
a Hugging Face folder (for our runners) and as GGUF (for llama.cpp) from the same tensors.
Knows nothing about servers or measurements.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NUM_LAYERS, HIDDEN, INTERMEDIATE, NUM_HEADS, VOCABULARY = 24, 1024, 2816, 16, 151_936
FIRST_SPECIAL_ID = 151_643
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTEXT_LENGTH = 32_768
MERGE = ("Q", "Q")  # llama.cpp wants at least one; our texts have no capital letters
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# One user message: <|im_start|> user \n … <|im_end|> \n <|im_start|> assistant \n, a token a character. All prompts
# begin with what is in front of the message.
NUM_PUBLIC_TOKENS = 1 + len("user\n")
NUM_TEMPLATE_TOKENS = NUM_PUBLIC_TOKENS + 1 + 1 + 1 + len("assistant\n")


def text_of_tokens(num_tokens: int, seed: int) -> str:
    """Random lower-case words that are exactly ``num_tokens`` tokens; another seed shares no prefix worth caching."""
    whims = random.Random(seed)
    return "".join(whims.choice("abcdefghijklmnopqrstuvwxyz    ") for _ in range(num_tokens))


def write_hugging_face(folder: Path, seed: int = 0) -> None:
    """config.json, model.safetensors (bfloat16) and the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tensors = {name: _random(name, shape) for name, shape in _shapes()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(), indent=2))
    _tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "chat_template": TEMPLATE,
                "clean_up_tokenization_spaces": False,
            }
        )
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": FIRST_SPECIAL_ID + 2}))


def write_compressed(source: Path, folder: Path) -> None:
    """The model at ``source`` as compressed-tensors: linear layers in int8, their inputs too, token by token."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if "_proj.weight" not in name:
            tensors[name] = tensor
            continue
        scale = tensor.float().abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (tensor.float() / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": eight | {"strategy": "channel", "dynamic": False},
        "input_activations": eight | {"strategy": "token", "dynamic": True},
    }
    how = {"quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed"}
    whole = how | {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(_config() | {"quantization_config": whole}, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())


def write_gguf(folder: Path, path: Path) -> None:
    """The same model as GGUF in float16, from which llama-quantize makes the others."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("qwen15-05b-shape")
    writer.add_block_count(NUM_LAYERS)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_HEADS)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, NUM_LAYERS)
    for name, tensor in load_file(folder / "model.safetensors").items():
        kind = torch.float16 if tensor.dim() > 1 else torch.float32
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.to(kind).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", (HIDDEN,)
        for projection in "qkv":
            yield f"{prefix}.self_attn.{projection}_proj.weight", (HIDDEN, HIDDEN)
            yield f"{prefix}.self_attn.{projection}_proj.bias", (HIDDEN,)
        yield f"{prefix}.self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield f"{prefix}.mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{prefix}.mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{prefix}.mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Matrices and biases small and normal, norms one: activations stay bounded through 24 layers."""
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape) * 0.02).to(torch.bfloat16)


def _config() -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT_LENGTH,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": FIRST_SPECIAL_ID,
        "eos_token_id": FIRST_SPECIAL_ID + 2,
    }


def _tokens() -> list[str]:
    """Ids in order: the bytes in the byte-level alphabet, fillers, the specials, and unused ids up to the true size."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = ["".join(MERGE), *(f"Ġw{number}" for number in range(1, FIRST_SPECIAL_ID - len(letters)))]
    unused = [f"<|unused{number}|>" for number in range(VOCABULARY - FIRST_SPECIAL_ID - len(SPECIALS))]
    return [*letters, *fillers, *SPECIALS, *unused]


def _tokenizer() -> Tokenizer:
    ordinary = {token: number for number, token in enumerate(_tokens()[:FIRST_SPECIAL_ID])}
    tokenizer = Tokenizer(models.BPE(vocab=ordinary, merges=[MERGE]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens = _tokens()
    kinds = [gguf.TokenType.NORMAL] * FIRST_SPECIAL_ID + [gguf.TokenType.CONTROL] * len(SPECIALS)
    kinds += [gguf.TokenType.UNUSED] * (VOCABULARY - len(kinds))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(MERGE)])
    writer.add_eos_token_id(FIRST_SPECIAL_ID + 2)
    writer.add_pad_token_id(FIRST_SPECIAL_ID)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def render(messages: Sequence[Mapping[str, str]]) -> str:
    """What :data:`TEMPLATE` makes of a conversation, for callers without a template engine."""
    turns = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return f"{turns}<|im_start|>assistant\n"
