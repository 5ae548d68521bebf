"""The model card: all that the web process needs to know of a model. The engine hands it over when they connect."""

from __future__ import annotations

import msgspec


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are chosen where a request does not say; names and meanings as in ``generation_config.json``.

    None: nothing is said.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded model is.

    Attributes:
        name: the name on the wire (``model`` in answers, ``id`` in ``/v1/models``).
        digest: SHA-256 of the model folder's manifest, lower-case hex; what audit records name.
        revision: where the weights come from, e.g. a commit or a file's digest.
        created: when it was imported, Unix seconds.
        context_length: tokens that prompt and completion may have together.
        eos_token_ids: ids that end a completion.
        tokenizer_json: a Hugging Face ``tokenizer.json``.
        chat_template: Jinja source; it is only ever rendered in a sandbox.
        bos_token, eos_token: their texts, for templates that use them; may be empty.
        runner: which runner serves it (``native``, ``openvino``, ``torch`` …).
        sampling: what its authors recommend.
        unsupported: fields of a request's sampling that its runner cannot do, by their names in ``/v1``.
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
