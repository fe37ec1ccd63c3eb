"""A web server that counts its visitors; it listens where the platform says."""

from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Page(BaseHTTPRequestHandler):
    """Says how often it was asked."""

    hits = 0

    def do_GET(self) -> None:
        """Answers each path alike, but for the probe."""
        if self.path != "/healthz":
            Page.hits += 1
        body = f"{Page.hits} hits at {os.environ['PELTON_INSTANCE']}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    address = ("127.0.0.1", int(os.environ["PORT"]))
    print("listening at", *address, flush=True)
    ThreadingHTTPServer(address, Page).serve_forever()
