"""A server on loopback that speaks as much of ModelScope's API as its client library uses to fetch a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


@dataclass
class Hub:
    """The served repositories (id -> folder) and what was asked for."""

    repositories: dict[str, Path]
    url: str = ""
    fetched: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    cut_after: int | None = None


@contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        owner_and_name = "/".join(parts.path.split("/")[4:6])
        folder = self.hub.repositories.get(owner_and_name)
        if folder is None:
            self._json(404, {"Code": 10010205001, "Message": "not found", "Success": False})
        elif parts.path.endswith("/repo/files"):
            self._json(
                200, {"Code": 200, "Success": True, "Data": {"Files": [_entry(path) for path in folder.iterdir()]}}
            )
        elif parts.path.endswith("/repo"):
            self._file(folder / query["FilePath"])
        else:
            self._json(200, {"Code": 200, "Success": True, "Data": {}})

    def _file(self, path: Path) -> None:
        content = path.read_bytes()
        total = len(content)
        start = 0
        asked = self.headers.get("Range")
        self.hub.fetched.append(path.name)
        if asked:
            self.hub.ranges.append(f"{path.name} {asked}")
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first)
            content = content[start : int(last) + 1 if last else None]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut = self.hub.cut_after
        self.wfile.write(content if cut is None or len(content) <= cut else content[:cut])

    def _json(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _entry(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    return {
        "Path": path.name,
        "Name": path.name,
        "Type": "blob",
        "Size": len(content),
        "Sha256": hashlib.sha256(content).hexdigest(),
    }
