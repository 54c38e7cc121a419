"""A wire fake of a running host: answers the control API from a table, and has the files of a real home."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from toolhost.hosting.home import Home, HostFile, write_private

OPERATOR_TOKEN = "th_operator_test"


@dataclass
class FakeHost:
    home: Path
    url: str
    answers: dict[tuple[str, str], tuple[int, Any]]
    requests: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def fake_host(home: Path, answers: Mapping[tuple[str, str], tuple[int, Any]]) -> Iterator[FakeHost]:
    """Serve *answers*, keyed by method and target below `/api/v1`, and be the host that runs in *home*."""
    host = FakeHost(home=home, url="", answers=dict(answers))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(host))
    host.url = f"http://127.0.0.1:{server.server_address[1]}"
    files = Home(home)
    files.prepare()
    files.write_host_file(
        HostFile(
            url=host.url,
            pid=os.getpid(),
            ingress_pid=os.getpid(),
            instance=files.instance,
            control_socket=str(files.control_socket),
            started_at=0.0,
        )
    )
    write_private(files.operator_token_file, OPERATOR_TOKEN.encode())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def _handler(host: FakeHost) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            target = self.path.removeprefix("/api/v1")
            host.requests.append(
                {
                    "method": self.command,
                    "target": target,
                    "authorization": self.headers.get("Authorization"),
                    "body": json.loads(raw) if raw else None,
                }
            )
            status, answer = host.answers.get(
                (self.command, target), (404, {"error": {"code": "not_found", "message": f"no {target}"}})
            )
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server looks for

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the tests look at `requests`."""

    return Handler
