"""A judge for trying a script, not for judging: python scripts/tiny/judge.py PORT serves
http://127.0.0.1:PORT/v1.

It answers in the protocol of an OpenAI-compatible endpoint. P(yes) of a picture is drawn from a
hash of its pixels and of the question, so it is the same each time and has nothing to do with what
is seen. Standard library and Pillow only.
"""

from __future__ import annotations

import io
import json
import math
import sys
from base64 import b64decode
from collections.abc import Sequence
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

COLOURS = ("red", "blue", "green", "white", "black", "pink", "brown", "grey")
THINGS = (
    "cat",
    "cup",
    "star",
    "key",
    "moon",
    "house",
    "fish",
    "bird",
    "tree",
    "boat",
    "drum",
    "ring",
)


def share(*parts: bytes) -> float:
    """A number in [0, 1) that depends on ``parts`` alone."""
    return int.from_bytes(sha256(b"\0".join(parts)).digest()[:4], "big") / 2**32


def pick(names: Sequence[str], *parts: bytes) -> str:
    """One of the names, by ``parts`` alone."""
    return names[int(len(names) * share(*parts))]


def answer(body: dict) -> dict:
    """The first choice of a completion."""
    content = body["messages"][-1]["content"]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    text, pixels = "", []
    for part in parts:
        if part["type"] == "text":
            text += part["text"]
        elif part["type"] == "image_url":
            encoded = part["image_url"]["url"].partition(",")[2]  # of a data URL
            image = Image.open(io.BytesIO(b64decode(encoded))).convert("RGB")
            pixels.append(image.tobytes())
    if body.get("logprobs"):
        return verdict(min(max(share(text.encode(), *pixels), 0.01), 0.99))
    if "JSON list" in text and "instructions" in text:
        words = json.dumps(edit_instructions(text))
    elif "JSON list" in text:
        words = json.dumps(prompts_for(text))
    else:
        words = "There is a star."
    return {"message": {"role": "assistant", "content": words}, "logprobs": None}


def verdict(p_yes: float) -> dict:
    """Yes or No, with the log-probabilities of both at the first token."""
    likeliest = [
        {"token": "Yes", "logprob": math.log(p_yes)},
        {"token": "No", "logprob": math.log(1 - p_yes)},
    ]
    return {
        "message": {"role": "assistant", "content": "Yes" if p_yes > 0.5 else "No"},
        "logprobs": {"content": [{**likeliest[0], "top_logprobs": likeliest}]},
    }


def edit_instructions(text: str) -> list[str]:
    """At most three, each once."""
    instructions = [f"make it {pick(COLOURS, text.encode(), bytes([k]))}" for k in range(3)]
    return list(dict.fromkeys(instructions))


def prompts_for(text: str) -> list[str]:
    """Five prompts that depend on the last line of the question."""
    seed = text.rpartition("\n")[2].encode()
    prompts = []
    for k in range(5):
        colour = pick(COLOURS, seed, bytes([k, len(COLOURS)]))
        thing = pick(THINGS, seed, bytes([k, len(THINGS)]))
        prompts.append(f"a photo of a {colour} {thing}")
    return prompts


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {"index": 0, "finish_reason": "stop", **answer(body)}
        data = json.dumps(
            {"object": "chat.completion", "model": body["model"], "choices": [choice]}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
