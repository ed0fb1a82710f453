"""A judge's server that misbehaves as servers do, and what a call to it should have given."""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from secondlook.llm.endpoint import PROBE

FAULTS = ("500", "503", "429", "hang", "half", "html", "wrong json", "drip", "close")
UNREADABLE = ("no logprobs", "no verdict")
"""Faults of a whole answer, which at temperature 0 is not asked for again."""


def truth(text: str) -> float:
    """P(yes) of a question, by the number in it."""
    return int(re.search(r"number (\d+)", text)[1]) % 101 / 100


class Judge(ThreadingHTTPServer):
    """Serves ``/v1/chat/completions``. Each question meets up to ``most`` faults in a row before it
    is answered; a question with "hopeless" in it is never answered."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(
        self,
        faults=FAULTS,
        most: int = 3,
        hang: float = 5.0,
        share: float = 0.5,
        text="a sentence.",
    ):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.most, self.hang, self.share, self.text = faults, most, hang, share, text
        self.tried, self.answered, self.met = Counter(), Counter(), Counter()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass

    def fault(self, key: str, text: str) -> str | None:
        seed = int(hashlib.sha256(key.encode()).hexdigest(), 16)
        with self.lock:
            self.tried[key] += 1
            n = self.tried[key]
            bad = seed % 1000 < 1000 * self.share and n <= 1 + seed // 1000 % self.most
            found = (
                self.faults[(seed + n) % len(self.faults)] if "hopeless" in text or bad else None
            )
            self.met[found] += 1
        return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body: bytes, status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(raw)
        content = asked["messages"][0]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        if asked["model"] == "unknown":
            return self.reply(b"{}", 404)
        if text == PROBE["messages"][0]["content"]:  # is anybody there?
            return self.reply(json.dumps({"choices": [{"message": {"content": "Yes."}}]}).encode())
        key = hashlib.sha256(raw).hexdigest()
        fault = self.server.fault(key, text)
        good = json.dumps({"choices": [self.choice(asked, text)]}).encode()
        if fault is None:
            with self.server.lock:
                self.server.answered[key] += 1
            return self.reply(good)
        return self.misbehave(fault, good)

    def misbehave(self, fault: str, good: bytes) -> None:
        if fault.isdigit():
            self.reply(b'{"error": "overloaded"}', int(fault))
        elif fault == "hang":
            time.sleep(self.server.hang)
            self.close_connection = True
        elif fault == "drip":
            self.send_response(200)
            self.send_header("Content-Length", str(len(good)))
            self.end_headers()
            for i in range(len(good) - 1):
                self.wfile.write(good[i : i + 1])
                self.wfile.flush()
                time.sleep(self.server.hang / 20)
        elif fault == "half":
            self.reply(good[: len(good) // 2], length=len(good))
            self.close_connection = True
        elif fault == "close":
            self.close_connection = True
        else:
            said = {"html": "<html>bad gateway</html>", "wrong json": '{"answer": "yes"}'}
            silent = {"choices": [{"message": {"content": "yes"}, "logprobs": None}]}
            undecided = {"choices": [logprobs([("maybe", -0.1)])]}
            other = silent if fault == "no logprobs" else undecided
            self.reply(said.get(fault, json.dumps(other)).encode())

    def choice(self, asked: dict, text: str) -> dict:
        if not asked.get("logprobs"):
            if text.startswith("Split"):
                number = re.search(r"number (\d+)", text)[1]
                return {
                    "message": {
                        "content": f'Here: ["Is it number {number}?", "Is it like number 100?"]'
                    }
                }
            return {"message": {"content": self.server.text}}
        p = truth(text) * 0.9
        return logprobs([("Yes", p * 2 / 3), (" yes", p / 3), ("No", 0.9 - p), ("perhaps", 0.1)])


def logprobs(likely: list) -> dict:
    import math

    tops = [{"token": t, "logprob": math.log(p) if p > 0 else -9999.0} for t, p in likely]
    return {
        "message": {"content": likely[0][0]},
        "logprobs": {"content": [{"token": likely[0][0], "top_logprobs": tops}]},
    }
