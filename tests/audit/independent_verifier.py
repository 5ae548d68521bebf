"""A verifier written from docs/reference/audit-format.md; it imports nothing of chatsvc.

python independent_verifier.py DIRECTORY [SEAL_KEY]
"""

import base64
import hashlib
import hmac
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Bad(Exception):
    """(exit code, record, why)"""


def sha(data):
    return hashlib.sha256(data).digest()


def root_of(tree):
    root = tree[-1] if tree else sha(b"")
    for left in reversed(tree[:-1]):
        root = sha(b"\x01" + left + root)
    return root


def append(tree, size, leaf):
    while size & 1:
        leaf, size = sha(b"\x01" + tree.pop() + leaf), size >> 1
    tree.append(leaf)


def opened(note, keys, seq):
    """The text of a signed note."""
    text, _, lines = note.replace("\n\n", "\n\0").partition("\0")
    signatures = [line.split(" ")[1:] for line in lines.strip("\n").split("\n")]
    known = [(name, base64.b64decode(data)) for name, data in signatures if name == text.partition("\n")[0]]
    known = [(keys[name, data[:4]], data[4:]) for name, data in known if (name, data[:4]) in keys]
    if not known:
        raise Bad(6, seq, "a note is signed by no known key")
    try:
        for key, signature in known:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, text.encode())
    except InvalidSignature:
        raise Bad(1, seq, "a signature is wrong") from None
    return text.split("\n")


class Log:
    def __init__(self, directory, seal_key=None):
        lines = [line.split("+", 2) for line in (directory / "audit.vkey").read_text().split()]
        self.keys = {(name, bytes.fromhex(key_id)): base64.b64decode(key)[1:] for name, key_id, key in lines}
        self.directory, self.seal = directory, seal_key.split() if seal_key else None
        self.due, self.covered, self.open = {}, 0, {}
        self.size, self.tree, self.prev, self.epoch, self.log_id = 0, [], sha(b"\x00"), 0, None
        self.log_us, self.clock = 0, {"sum_us": 0, "num_steps": 0}

    def verify(self):
        segments = sorted(self.directory.glob("audit-*.jsonl"), key=lambda path: int(path.stem[6:]))
        if (stone := self.directory / "audit.tombstone").exists():
            facts = json.loads(opened(stone.read_text(), self.keys, 0)[2])
            segments = [path for path in segments if int(path.stem[6:]) >= facts["size"]]
            self.begin_at(json.loads(segments[0].read_bytes().partition(b"\n")[0]), facts)
        torn = b""
        for segment in segments:
            parts = segment.with_suffix(".checkpoints").read_text().split("\n\n")
            for text, signature in zip(parts[::2], parts[1::2], strict=False):
                _, size, root, _ = opened(f"{text}\n\n{signature}\n", self.keys, self.size)
                self.due[int(size)] = base64.b64decode(root)
            *lines, torn = segment.read_bytes().split(b"\n")
            for number, line in enumerate(lines):
                self.take(line, number == 0)
        if any(size > self.size for size in self.due):
            raise Bad(1 if torn else 5, self.size, "fewer records than a checkpoint says")
        if torn:
            raise Bad(4, self.size, "a torn tail")
        if not self.covered:
            raise Bad(1, 0, "no checkpoint")
        return self.size

    def begin_at(self, record, facts):
        self.size, self.tree = record["seq"], [bytes.fromhex(each) for each in record["segment"]["tree"]]
        self.prev, self.epoch = bytes.fromhex(record["prev"]), record["epoch"]
        self.open = {each["seq"]: each for each in record["segment"]["open"]}
        self.clock = record["segment"].get("clock", self.clock)
        if (self.size, root_of(self.tree).hex()) != (facts["size"], facts["root"]):
            raise Bad(1, self.size, "the tombstone is of something else")

    def take(self, line, first):
        try:
            record = json.loads(line)
            good = rfc8785.dumps(record) == line and self.keeps_rules(record, first)
        except (ValueError, KeyError, TypeError, AttributeError):
            good = False
        if not good:
            raise Bad(1, self.size, "it does not keep the rules")
        if record["stage"] == "begin":
            self.open[self.size] = {name: record.get(name) for name in ("seq", "request_id", "action", "actor")}
        elif record["stage"] == "end":
            del self.open[record["begin"]]
        self.log_id, self.epoch = record["log_id"], record.get("next_epoch", record["epoch"])
        self.log_us = self.log_time(record)
        if (step := record.get("clock_step_us")) is not None:
            self.clock = {"sum_us": self.clock["sum_us"] + step, "num_steps": self.clock["num_steps"] + 1}
        self.prev = sha(b"\x00" + line)
        append(self.tree, self.size, self.prev)
        self.size += 1
        if self.size in self.due:
            if self.due[self.size] != root_of(self.tree):
                raise Bad(1, self.size - 1, "the root is not the checkpoint's")
            self.covered = self.size

    def keeps_rules(self, record, first):
        if first:
            header = record["segment"]
            self.epochs = header["seal"]
            opens = [self.open[seq] for seq in sorted(self.open)]
            if (header["tree"], header["open"]) != ([each.hex() for each in self.tree], opens):
                return False
            if header.get("clock", {"sum_us": 0, "num_steps": 0}) != self.clock:
                return False
            head = [str(self.size), base64.b64encode(root_of(self.tree)).decode()]
            if self.size and opened(header["checkpoint"], self.keys, self.size)[1:3] != head:
                return False
        log_us, step = self.log_time(record), record.get("clock_step_us")
        tells_step = record["action"] == "audit.clock" and abs(step) >= 60_000_000
        now = (log_us - self.epochs["start"] * 1_000_000) // (self.epochs["length"] * 1_000_000)
        turns = record["action"] == "audit.epoch"
        right_epoch = record["next_epoch"] == now > record["epoch"] if turns else record["epoch"] == now
        stage, log_id = record["stage"], self.log_id or record["log_id"]
        return (
            [record[name] for name in ("v", "seq", "prev", "log_id")] == [1, self.size, self.prev.hex(), log_id]
            and (tells_step or step is None)
            and (log_us >= self.log_us and (stage == "segment") == first)
            and (stage != "end" or record["begin"] in self.open)
            and (right_epoch and record["epoch"] == self.epoch and (turns or "next_epoch" not in record))
            and (self.seal is None or self.mac_is_right(record))
        )

    def log_time(self, record):
        moment = datetime.strptime(record["ts"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        wall_us = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        return wall_us - self.clock["sum_us"] - record.get("clock_step_us", 0)

    def mac_is_right(self, record):
        key = bytes.fromhex(self.seal[5])
        for _ in range(int(self.seal[4]), record["epoch"]):
            key = hmac.digest(key, b"chatsvc audit ratchet v1", "sha256")
        mac_key = hmac.digest(key, b"chatsvc audit mac v1", "sha256")
        bare = rfc8785.dumps({name: value for name, value in record.items() if name != "mac"})
        return hmac.digest(mac_key, bare, "sha256").hex() == record["mac"]


if __name__ == "__main__":
    try:
        print(Log(Path(sys.argv[1]), *[Path(each).read_text() for each in sys.argv[2:]]).verify(), "records, clean")
    except Bad as error:
        sys.exit(error.args[0])
