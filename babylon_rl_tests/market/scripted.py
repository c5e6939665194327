"""A small OpenAI-compatible endpoint on loopback whose answers a test scripts."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], tuple[int, Any]]


@dataclass
class Scripted:
    """Where the endpoint listens, what it was asked, and how many requests it had at once at most."""

    base_url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0


def completion(text: str, **changes: Any) -> dict[str, Any]:
    """A chat completion as vLLM gives it, with the checkpoint that our own server names; None leaves a field out."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "logprobs": {"content": [{"token": "token_id:5", "logprob": -0.5}, {"token": "token_id:6", "logprob": -0.1}]},
        "token_ids": [5, 6],
    }
    body = {"model": "policy", "checkpoint": "run-0001", "prompt_token_ids": [1, 2, 3], "choices": [choice]}
    for name, value in changes.items():
        (choice if name in choice else body)[name] = value
    return body


def first_choice(body: dict[str, Any]) -> tuple[int, Any]:
    """Always the first of the allowed answers: BUY."""
    return 200, completion(body["structured_outputs"]["choice"][0])


@contextmanager
def endpoint(reply: Reply) -> Iterator[Scripted]:
    """Serve until the block ends; `reply` gets the request's body and returns status and body."""
    script, lock, now = Scripted(), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                now[0] += 1
                script.most_at_once = max(script.most_at_once, now[0])
                script.bodies.append(body)
                script.headers.append(dict(self.headers))
            try:
                status, answer = reply(body) if self.path == "/v1/chat/completions" else (404, "no such path")
            finally:
                with lock:
                    now[0] -= 1
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Tests are silent."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # agents connect all at once; a full queue costs a second

        def handle_error(self, *_: Any) -> None:
            """A client that went away after another request's failure is no fault of the endpoint."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    script.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
