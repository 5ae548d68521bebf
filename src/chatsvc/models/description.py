"""``model.json``: the model card without its large parts, and which files are weights."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from chatsvc.errors import ModelRefused, OperatorError
from chatsvc.models.card import ModelCard, SamplingDefaults

Format = Literal["gguf", "openvino", "safetensors"]

DESCRIPTION_FILE = "model.json"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``model.json``.

    Attributes:
        name, revision, created, context_length, eos_token_ids, bos_token, eos_token: as in :class:`ModelCard`.
        format: how the weights are stored.
        weights: the weight files; sealing encrypts exactly these.
        source: where it was fetched or imported from, for display.
        sampling: the authors' recommendation.
        sealed: the weight files exist only in sealed form (``NAME.sealed``).
    """

    name: str
    revision: str
    created: int
    context_length: int
    eos_token_ids: list[int]
    format: Format
    weights: list[str]
    bos_token: str = ""
    eos_token: str = ""
    source: str = ""
    sampling: SamplingDefaults = SamplingDefaults()
    sealed: bool = False

    def encode(self) -> bytes:
        """The file's bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def card(self, digest: str, tokenizer_json: bytes, chat_template: str) -> ModelCard:
        """The whole card."""
        return ModelCard(
            name=self.name,
            digest=digest,
            revision=self.revision,
            created=self.created,
            context_length=self.context_length,
            eos_token_ids=self.eos_token_ids,
            tokenizer_json=tokenizer_json,
            chat_template=chat_template,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
            sampling=self.sampling,
        )


def decode(content: bytes) -> ModelDescription:
    """Parse ``model.json``.

    Raises:
        ModelRefused: it is not one.
    """
    try:
        return msgspec.json.decode(content, type=ModelDescription)
    except msgspec.DecodeError as error:
        raise ModelRefused from error


def check_name(name: str) -> str:
    """Return a name of a model, or of one of its files, that cannot lead out of its folder.

    Raises:
        OperatorError: it could, or the store uses this name itself.
    """
    if _NAME.fullmatch(name) is None or name == "current":
        raise OperatorError(
            f"{name!r} cannot be a model's name: use 1 to 100 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit, and not 'current'"
        )
    return name
