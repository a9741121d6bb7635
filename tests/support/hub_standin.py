"""A small stand-in of the Hugging Face hub: the endpoints that ``huggingface_hub`` asks, over local
folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """``models``: id → revision → folder. ``gated``: ids that need ``TOKEN``. ``cut_after``: file
    name → bytes, after which its next download loses the connection; ``stall_after``: after which
    it hangs until ``stalled`` is set. ``requests``: what was asked, (method, path, Range)."""

    TOKEN = "hf_stand_in"

    models: dict[str, dict[str, Path]]
    gated: set[str] = field(default_factory=set)
    cut_after: dict[str, int] = field(default_factory=dict)
    stall_after: dict[str, int] = field(default_factory=dict)
    stalled: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""

    def commit(self, model: str, revision: str) -> str:
        return hashlib.sha1(
            f"{model}@{revision}".encode(), usedforsecurity=False
        ).hexdigest()

    def folder(self, model: str, revision: str) -> tuple[str, Path] | None:
        """The commit and the folder of a revision: its name, or the commit itself."""
        for name, folder in self.models[model].items():
            if revision in (name, self.commit(model, name)):
                return self.commit(model, name), folder
        return None

    def fetched(self) -> list[str]:
        return sorted(
            {
                path.rsplit("/", 1)[-1]
                for method, path, _ in self.requests
                if method == "GET" and "/resolve/" in path
            }
        )


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(_Handler):
        shared = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}
    )
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    shared: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.shared.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        model = "/".join(parts[2:4] if api else parts[:2])
        rest = parts[4:] if api else parts[2:]
        if model not in self.shared.models:
            return self._fail(404, "RepoNotFound")
        found = self.shared.folder(model, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return self._fail(404, "RevisionNotFound")
        commit, folder = found
        if not api:
            return self._file(model, commit, folder / "/".join(rest[2:]))
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        if rest[:1] == ["tree"]:
            rows = [
                (str(p.relative_to(folder)), p.stat().st_size, _oid(p)) for p in files
            ]
            return self._json(
                [
                    {"type": "file", "path": path, "size": size, "oid": oid}
                    for path, size, oid in rows
                ]
            )
        siblings = [{"rfilename": str(p.relative_to(folder))} for p in files]
        return self._json(
            {
                "id": model,
                "modelId": model,
                "sha": commit,
                "private": False,
                "siblings": siblings,
            }
        )

    def _file(self, model: str, commit: str, path: Path) -> None:
        if (
            model in self.shared.gated
            and self.headers.get("Authorization") != f"Bearer {Hub.TOKEN}"
        ):
            return self._fail(401, "GatedRepo")
        if not path.is_file():
            return self._fail(404, "EntryNotFound")
        data = path.read_bytes()
        first, asked = 0, self.headers.get("Range")
        if asked is not None:
            first = int(asked.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_oid(path)}"')
        self.send_header("Content-Length", str(len(data) - first))
        if asked:
            self.send_header(
                "Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}"
            )
        self.end_headers()
        if self.command == "HEAD":
            return None
        cut = self.shared.cut_after.pop(path.name, None)
        stall = self.shared.stall_after.pop(path.name, None)
        self.wfile.write(data[first : cut or stall])
        if stall:
            self.wfile.flush()
            self.shared.stalled.wait(60)
        self.close_connection = bool(cut or stall)
        return None

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"the stand-in says {code}")
        self.send_header("Content-Length", "0")
        self.end_headers()


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
