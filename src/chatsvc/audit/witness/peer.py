"""Another replica as a witness: it receives every checkpoint with a proof that the log only grew.

The peer (:mod:`chatsvc.audit.witness.held_heads`) keeps the last head of this log and accepts no other history. The
owner of this host cannot change what the peer holds. Connects to the configured address only: no proxy, no redirect.
"""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from chatsvc.audit.format.record import RecordInvalid
from chatsvc.audit.format.tree import ProofInvalid
from chatsvc.audit.options import Peer
from chatsvc.audit.witness.files import Witness, WitnessRefuses
from chatsvc.audit.witness.growth_proofs import GrowthProofs
from chatsvc.audit.witness.seen import checkpoint_in
from chatsvc.errors import OperatorError

_PATH = "/audit/witness"
_NO_WITNESS = "its answer is not a witness's"
_BAD_URL = "audit.witness_peer_url must be https://HOST…, or http://… of this machine itself."
_KEY = re.compile(r"csk_[A-Za-z0-9_-]+")
_TIMEOUT_S = 4
_MAX_ANSWER_BYTES = 65_536


class PeerWitness(Witness):
    """Sends to one peer. Proofs come from the first of ``directories``, copies of this log, that can give them."""

    def __init__(self, peer: Peer, directories: Sequence[Path]) -> None:
        try:
            place = urlsplit(peer.url)
            host, port = place.hostname or "", place.port
        except ValueError:
            raise OperatorError(_BAD_URL) from None
        if not host or not (place.scheme == "https" or (place.scheme == "http" and _is_here(host))):
            raise OperatorError(_BAD_URL)
        if not _KEY.fullmatch(peer.key):
            raise OperatorError("audit.witness_peer_key must be an API key (csk_…) of the peer, with scope witness.")
        self.name = f"peer {host}"
        self._host, self._port, self._prefix = host, port, place.path.rstrip("/")
        self._is_encrypted = place.scheme == "https"
        self._peer = peer
        self._growths = [GrowthProofs(each) for each in directories]
        self._held: int | None = None  # how many records the peer has seen; None: not known

    def publish(self, note: str) -> None:
        """Send the note and its proof.

        Raises:
            OSError: the peer cannot be reached.
            WitnessRefuses: it refuses, or the proof cannot be made.
        """
        checkpoint = checkpoint_in(note)
        held, self._held = self._held, None
        if held is None:
            held = self._ask("GET", f"{_PATH}?origin={quote(checkpoint.origin, safe='')}").get("size")
        if not isinstance(held, int):
            raise WitnessRefuses(_NO_WITNESS)
        if held > checkpoint.size:
            raise WitnessRefuses(f"it has seen {held} records, and this checkpoint has {checkpoint.size}")
        proof = [each.hex() for each in self._proof(held, checkpoint.size)]
        answer = self._ask("POST", _PATH, {"checkpoint": note, "old_size": held, "proof": proof})
        if answer != {"origin": checkpoint.origin, "size": checkpoint.size}:
            raise WitnessRefuses(_NO_WITNESS)
        self._held = checkpoint.size

    def _proof(self, old: int, new: int) -> list[bytes]:
        why = ""
        for growth in self._growths:
            try:
                return growth.proof(old, new)
            except (ProofInvalid, RecordInvalid) as error:
                why = error.message
        raise WitnessRefuses(f"it cannot be shown that the log only grew: {why}")

    def _ask(self, method: str, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        connection = self._connection()
        try:
            headers = {"Authorization": f"Bearer {self._peer.key}", "Content-Type": "application/json"}
            connection.request(method, self._prefix + path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            data = answer.read(_MAX_ANSWER_BYTES)
        except HTTPException as error:
            raise OSError(f"{type(error).__name__} from the peer") from error
        finally:
            connection.close()
        try:
            found = json.loads(data)
            if answer.status == 200:
                return dict(found)
            why = str(found["error"]["message"])
        except (ValueError, KeyError, TypeError):
            why = _NO_WITNESS
        raise WitnessRefuses(f"{answer.status}: {why}")

    def _connection(self) -> HTTPConnection:
        if not self._is_encrypted:
            return HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        trust = ssl.create_default_context(cafile=self._peer.ca_file)
        return HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_S, context=trust)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
