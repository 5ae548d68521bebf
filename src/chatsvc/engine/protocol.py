"""The frames between web and engine: this page is the protocol.

A frame is a big-endian u32 length, then that many bytes of MessagePack: a map whose key ``type`` names the struct
below. A frame is at most :data:`MAX_FRAME_BYTES`. The engine speaks first (:class:`Hello`, when the model has been
loaded *and* has answered its warm-up), then sends a :class:`Heartbeat` at least every :data:`HEARTBEAT_INTERVAL_S`
while it is not inside a step, and after every step that took longer. Ids in, ids out: the engine knows no text.

A sequence's life on the wire::

    submit -> delta* -> finished            (stop, length, cancelled or error)
    submit -> accepted -> delta* -> finished  (with a grammar; where that is refused, finished comes at once)
    submit -> cancel -> delta* -> finished  (the cancel may cross a finished: that is not an error)

Draining: the engine sends a heartbeat with status ``draining`` and keeps accepting for a moment, because a submit may
be in transit. A client that sees it connects to the same path again (another engine may be there by then) and submits
no more here.

Replacing: a new engine listens beside the old one, under ``PATH.next``. A client that finds one there
connects, prepares for the new model's card, sends :class:`Adopt` and gives it all new work; one that cannot
use the card disconnects. The supervisor sees the adoption in the heartbeat, and only then drains the old engine.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

from chatsvc.errors import ChatsvcError
from chatsvc.models.card import ModelCard

MAX_FRAME_BYTES = 64 * 1024 * 1024
MAX_GRAMMAR_BYTES = 32 * 1024
HEARTBEAT_INTERVAL_S = 0.5
_LENGTH = struct.Struct(">I")

# Finished.detail of a sequence whose logits were NaN or infinite; submitting it again ends the same way.
NOT_FINITE = "the model computed numbers that are not finite"

FinishReason = Literal["stop", "length", "cancelled", "error"]


class ProtocolError(ChatsvcError):
    """The peer sent something that is not a frame; the connection is closed."""

    code = "protocol_error"


class Grammar(msgspec.Struct, frozen=True):
    """What the whole completion must be. An end-of-sequence token comes only where the text may end.

    ``text`` has at most :data:`MAX_GRAMMAR_BYTES`: a JSON Schema, a regular expression of Rust's ``regex`` crate or a
    grammar in llguidance's variant of Lark.
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens.

    A runner does this in order: report log-probabilities, add the biases, exclude tokens that are not allowed yet,
    apply the penalties, divide by the temperature, then keep candidates by ``top_k``, ``min_p`` and ``top_p``.

    Attributes:
        max_tokens: of the completion.
        temperature: 0 takes the most probable token.
        top_p: the candidates' joint probability.
        top_k: most candidates; 0 is as many as the runner takes (a sort of the whole vocabulary halves speed).
        min_p: a candidate's least probability, as a share of the most probable one's.
        repetition_penalty: divides a positive logit, and multiplies another, of every token of prompt and completion.
        presence_penalty, frequency_penalty: subtracted from the logit of a token of the completion, once, and once
            for every time it is there.
        logit_bias: token id to what is added to its logit.
        seed: of the sequence's own random numbers; None: a random one.
        min_tokens: no end-of-sequence token before so many tokens.
        ignore_eos: an end-of-sequence token does not end the completion.
        num_logprobs: alternatives to report with each token; None reports nothing.
        grammar: tokens that it does not allow are forbidden, whatever the others say.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    num_logprobs: int | None = None
    grammar: Grammar | None = None


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural logarithms of probabilities, of the model's own distribution before :class:`Sampling` is applied.

    ``logprob`` is the chosen token's; ``top_logprobs`` are those of ``top_ids``, the most probable first.
    """

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


class Submit(msgspec.Struct, frozen=True, kw_only=True, tag="submit"):
    """web -> engine. ``sharing_key`` is an opaque string for each principal; sequences with the same share prefixes.

    The first ``num_public`` ids are the public prompt prefix, which all keys share.
    """

    sequence_id: int
    prompt_ids: list[int]
    sampling: Sampling
    sharing_key: str = ""
    num_public: int = 0


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """web -> engine. An unknown id is ignored: its sequence has just finished."""

    sequence_id: int


class Adopt(msgspec.Struct, frozen=True, kw_only=True, tag="adopt"):
    """web -> engine: the client has accepted its model's card and sends new work to it."""


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """engine -> web, first frame of a connection: the card of the loaded model."""

    card: ModelCard
    max_num_seqs: int
    pid: int


class Accepted(msgspec.Struct, frozen=True, kw_only=True, tag="accepted"):
    """engine -> web: the sequence's grammar was compiled."""

    sequence_id: int


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag="delta", omit_defaults=True):
    """engine -> web: new token ids of one sequence, never empty. An id that ends the sequence is not among them.

    ``logprobs`` has one entry for each id where they were asked for, and is empty otherwise.
    """

    sequence_id: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = []


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """engine -> web: last frame of a sequence. ``num_completion_tokens`` counts an end-of-sequence id too.

    ``refusal`` says what is wrong with the sequence's grammar, and is for the caller; only with reason ``error``.
    """

    sequence_id: int
    reason: FinishReason
    num_completion_tokens: int
    num_cached_tokens: int = 0
    detail: str = ""
    refusal: str = ""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag="heartbeat"):
    """engine -> web. ``num_steps`` only grows; sequences running with no growth for long means a hung step.

    ``is_adopted``: a client has sent :class:`Adopt`.
    """

    status: Literal["serving", "draining"]
    num_steps: int
    num_running: int
    num_waiting: int
    last_step_s: float
    num_generated_tokens: int
    cache_usage: float = 0.0
    is_adopted: bool = False


ToEngine = Submit | Cancel | Adopt
ToWeb = Hello | Accepted | Delta | Finished | Heartbeat

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_to_web = msgspec.msgpack.Decoder(ToWeb)


def encode_frame(message: ToEngine | ToWeb) -> bytes:
    """One frame, length included.

    Raises:
        ProtocolError: the message does not fit a frame.
    """
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(payload)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


class FrameBuffer:
    """Cuts a byte stream into whole payloads."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add received bytes and return every payload that is now complete.

        Raises:
            ProtocolError: a length over the limit was announced.
        """
        self._bytes += data
        payloads: list[bytes] = []
        start = 0
        while len(self._bytes) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes, start)
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of {length} bytes was announced; the limit is {MAX_FRAME_BYTES}")
            end = start + _LENGTH.size + length
            if len(self._bytes) < end:
                break
            payloads.append(bytes(self._bytes[start + _LENGTH.size : end]))
            start = end
        del self._bytes[:start]
        return payloads


def decode_to_engine(payload: bytes) -> ToEngine:
    """A payload that the web side sent.

    Raises:
        ProtocolError: it is none of the structs above.
    """
    try:
        message: ToEngine = _to_engine.decode(payload)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"not a frame for the engine: {error}") from error
    return message


def decode_to_web(payload: bytes) -> ToWeb:
    """A payload that the engine sent.

    Raises:
        ProtocolError: it is none of the structs above.
    """
    try:
        message: ToWeb = _to_web.decode(payload)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"not a frame from the engine: {error}") from error
    return message
