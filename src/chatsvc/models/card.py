"""The model card: all that the web process needs to know of a model. The engine sends it on connection."""

from __future__ import annotations

import msgspec


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling values for requests that give none, named as in ``generation_config.json``; None: not stated."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """Describes a loaded model.

    Attributes:
        name: the name on the wire (``model`` in answers, ``id`` in ``/v1/models``).
        digest: SHA-256 of the model folder's manifest, lower-case hex; what audit records name.
        revision: the version of the weights, e.g. a commit or a file's digest.
        created: when it was imported, Unix seconds.
        context_length: maximum tokens of prompt and completion together.
        eos_token_ids: a completion ends at any of these.
        tokenizer_json: a Hugging Face ``tokenizer.json``.
        chat_template: Jinja source, rendered in a sandboxed child process only.
        bos_token, eos_token: their texts, for the template; may be empty.
        runner: which runner serves it (``native``, ``openvino``, ``torch`` …).
        sampling: the authors' recommendation.
        unsupported: sampling fields, by their names in ``/v1``, that the runner does not support.
    """

    name: str
    digest: str
    revision: str
    created: int
    context_length: int
    eos_token_ids: list[int]
    tokenizer_json: bytes
    chat_template: str
    bos_token: str = ""
    eos_token: str = ""
    runner: str = ""
    sampling: SamplingDefaults = SamplingDefaults()
    unsupported: tuple[str, ...] = ()
