"""A scripted judge on loopback that speaks OpenAI's chat completions and misbehaves on command.

with scripted_judge() as judge:
    judge.next("nan", "500")     # the next two answers; then it behaves again
    judge.whenever("t-bad", "doubled")   # each prompt that holds the text
"""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from babylon_rl.scoring.judge.fence import Entry, unfence

NONCE = re.compile(r"<trajectory-([0-9a-f]{24}) number=1 ")
ONE = re.compile(r'score of the run with id ("(?:[^"\\]|\\.)*") alone')


def by_actions(entry: Entry, shown: list[Entry]) -> float:
    """A score that only the lines of the record decide."""
    record = [line for line in entry.text.splitlines() if not line.startswith("| ")]
    return 0.8 if any("BUY" in line for line in record) else 0.2 if any("SELL" in line for line in record) else 0.5


def tokens(text: str) -> int:
    """A tokenizer's count: four letters a token at most with the space before them, each byte of all else by itself."""
    words = re.findall(r" ?[A-Za-z]{1,4}| ", text)
    return len(words) + len(re.sub("[A-Za-z ]", "", text).encode())


class Judge:
    """What the server was asked (`bodies`, `prompts`) and how it answers: `score(entry, all entries)`."""

    def __init__(self, score: Callable[[Entry, list[Entry]], float] = by_actions) -> None:
        self.score, self.base_url = score, ""
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.used = 0
        self._next: list[str] = []
        self._whenever: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def end(self) -> None:
        """Nobody waits any more for what was late."""
        self._ended.set()

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]

    def next(self, *faults: str) -> None:
        self._next += faults

    def whenever(self, text: str, fault: str) -> None:
        self._whenever.append((text, fault))

    def answer(self, body: dict, key: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the response."""
        prompt = body["messages"][0]["content"]
        with self._lock:
            self.bodies.append(body)
            self.keys.append(key)
            fault = next((fault for text, fault in self._whenever if text in prompt), None)
            if fault is None and self._next:
                fault = self._next.pop(0)
        if fault == "no_temperature":
            if "temperature" in body:
                said = "Unsupported value: 'temperature' does not support 0 with this model."
                return 400, {}, json.dumps({"error": {"message": said, "param": "temperature"}}).encode()
            fault = None
        if fault in REFUSALS:
            status, headers = REFUSALS[fault]
            return status, headers, json.dumps({"error": {"message": f"no: {key}", "type": fault}}).encode()
        if fault == "late":
            self._ended.wait(10)
        if fault == "not_http_json":
            return 200, {}, b"{"
        return 200, {}, self._completion(prompt, fault)

    def _completion(self, prompt: str, fault: str | None) -> bytes:
        nonce = NONCE.search(prompt)
        entries = unfence(prompt, nonce[1]) if nonce else []
        one = ONE.search(prompt)
        if one:
            wanted = json.loads(one[1])
            score = self.score(next(entry for entry in entries if entry.trajectory_id == wanted), entries)
            text = FAULTS[fault]([{"score": score}]) if fault else f"{score:.1f}"
        else:
            scores = [
                {"trajectory_id": entry.trajectory_id, "score": self.score(entry, entries), "reason": "It acted. So."}
                for entry in entries
            ]
            text = FAULTS.get(fault or "", _json)(scores)
        prompt_tokens, completion_tokens = tokens(prompt), tokens(text)
        with self._lock:
            self.used += prompt_tokens + completion_tokens
        return json.dumps(
            {
                "id": "judged",
                "object": "chat.completion",
                "created": 0,
                "model": "scripted",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "length" if fault == "cut_off" else "stop",
                        "message": {"role": "assistant", "content": text},
                    }
                ],
                "usage": None
                if fault == "no_usage"
                else {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "total_tokens": prompt_tokens + completion_tokens,
                },
            }
        ).encode()


def _json(scores: list[dict]) -> str:
    return json.dumps({"scores": scores})


def _changed(**change: object) -> Callable[[list[dict]], str]:
    return lambda scores: _json([{**scores[0], **change}, *scores[1:]])


# What the judge says instead, from the scores that it would have given.
FAULTS: dict[str, Callable[[list[dict]], str]] = {
    "missing": lambda scores: _json(scores[1:]),
    "doubled": lambda scores: _json([*scores, scores[0]]),
    "unknown": _changed(trajectory_id="t-unheard-of"),
    "nan": _changed(score=float("nan")),
    "out_of_range": _changed(score=7),
    "block": lambda scores: f"```json\n{_json(scores)}\n```",
    "prose": lambda scores: f"Well, I would say: {_json(scores)}",
    "empty": lambda scores: "",
    "cut_off": lambda scores: _json(scores)[:-9],
    "unstorable": _changed(reason="a\x00b\ud800c"),
    "letters": lambda scores: "very good",
}
REFUSALS = {
    "401": (401, {}),
    "403": (403, {}),
    "404": (404, {}),
    "400": (400, {}),
    "429": (429, {"Retry-After": "0.05"}),
    "500": (500, {"Retry-After": "0.01"}),
}


@contextlib.contextmanager
def scripted_judge(score: Callable[[Entry, list[Entry]], float] = by_actions) -> Iterator[Judge]:
    """A judge that listens on a free loopback port until the end."""
    judge = Judge(score)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, answer = judge.answer(body, self.headers.get("Authorization"))
            with contextlib.suppress(OSError):  # who waited may have given up
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    judge.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        judge.end()
        server.shutdown()
        server.server_close()
        thread.join()
