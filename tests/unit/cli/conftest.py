"""An ingress that answers HTTP from a script, and the command line called as a process would be."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import structlog

from maveriq.cli import main


@dataclass
class ScriptedIngress:
    """What it answers by "METHOD /path"; what it was asked is kept."""

    url: str
    answers: dict[str, tuple[int, object]] = field(default_factory=dict[str, tuple[int, object]])
    asked: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])

    def answer(self, request: str, body: object, status: int = 200) -> None:
        """Events are sent as such, bytes as they are, all else as JSON."""
        self.answers[request] = (status, body)


class Events(list[object]):
    """Sent one by one as server-sent events."""


@pytest.fixture
def ingress(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedIngress]:
    class Answering(BaseHTTPRequestHandler):
        def reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            scripted.asked.append((f"{self.command} {self.path}", body))
            missing = {"error": {"message": "Not Found", "type": "invalid_request_error", "param": None, "code": "x"}}
            answers, path = scripted.answers, self.path.removesuffix("?brief=true")  # a list may be told in full
            status, answer = answers.get(f"{self.command} {path}", (404, missing))
            self.send_response(status)
            self.end_headers()
            if isinstance(answer, Events):
                for event in answer:
                    self.wfile.write(f"data: {event if event == '[DONE]' else json.dumps(event)}\n\n".encode())
            else:
                self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        do_GET = do_POST = do_DELETE = reply

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    scripted = ScriptedIngress(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("MAVERIQ_URL", scripted.url)
    yield scripted
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass(frozen=True)
class Called:
    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Called]]:
    """Run `maveriq ARGUMENTS` and give its exit code and output."""

    def run(*arguments: str) -> Called:
        monkeypatch.setattr(sys, "argv", ["maveriq", *arguments])
        monkeypatch.setenv("COLUMNS", "100")
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Called(code, out, err)

    yield run
    structlog.reset_defaults()  # `up` has sent all logs to this test's stderr
