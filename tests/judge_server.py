"""A judge's server that answers as ``cases/unfriendly_judge.py`` has it, and a reward that asks it,
for ``integration/test_judge_*.py``."""

import importlib.util
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint
from secondlook.rewards.vlm import VLMReward

CASE = Path(__file__).parent / "cases" / "unfriendly_judge.py"
SPEC = importlib.util.spec_from_file_location("unfriendly_judge", CASE)
unfriendly = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(unfriendly)

QUICK = {"timeout": 5.0, "attempts": 2, "backoff": 0.01, "start_patience": 0.002}
SCORE = 0.905 / (0.905 + 0.091)
"""P(yes) of the probabilities that the server gives."""
ITEMS = [("a photo of a red star", Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(2)]
MANY = [(f"prompt number {i}", Image.new("RGB", (8, 8))) for i in range(60)]


class Server(ThreadingHTTPServer):
    """Serves inside ``with`` at ``url``; its models are those of ``unfriendly.MODELS``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port=0, handler=unfriendly.Handler):
        super().__init__(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass


def judge(url, model, reasons=True, **settings) -> VLMReward:
    """A reward whose judge is the server's ``model``."""
    return VLMReward(Asker(Endpoint(url, model, **(QUICK | settings))), reasons=reasons)
