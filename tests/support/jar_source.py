"""Where cache tests get jars from without a network: the files of an installation that is there already."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pelton_platform.embedded.artifacts import Artifact


class LocalFetch:
    """Copies artifacts from `jars`, and remembers which it was asked for."""

    def __init__(self, jars: Path) -> None:
        self._jars = jars
        self.asked: list[str] = []

    def __call__(self, artifact: Artifact, folder: Path) -> Path:
        """Fetch as `pelton_platform.embedded.cache.Fetch` says."""
        self.asked.append(artifact.filename)
        return Path(shutil.copy(self._jars / artifact.filename, folder))


def refusing_fetch(artifact: Artifact, folder: Path) -> Path:
    """Fetch like a machine without network."""
    raise ConnectionError("network is unreachable")


@contextmanager
def loopback_mirror(jars: Path, cut_once: frozenset[str] = frozenset()) -> Iterator[tuple[str, list[str]]]:
    """Serve jars in a registry's layout on loopback; yields its address and the names it was asked for.

    The first answer for each name in `cut_once` breaks off in the middle.
    """
    asked: list[str] = []
    still_to_cut = set(cut_once)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            path = jars / name
            if not name.endswith(".jar") or not path.exists():
                self.send_error(404)
                return
            asked.append(name)
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if name in still_to_cut:
                still_to_cut.discard(name)
                content = content[: len(content) // 2]
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()
