"""A verifier for the trees of these tests: an operator's service that has an opinion of every answer."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def opinion(answer: str) -> float:
    """Return a score from 0.5 to 1 that only the text decides; random weights know no better answers."""
    return 0.5 + hashlib.sha256(answer.encode()).digest()[0] / 510


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        reply = json.dumps({"scores": [opinion(answer) for answer in asked["answers"]]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def verifier() -> Iterator[str]:
    """Serve on a free port until the block ends; yield the address to post to."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/score"
        finally:
            server.shutdown()
            thread.join()
