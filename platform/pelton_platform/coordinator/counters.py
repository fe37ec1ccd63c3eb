"""How often what happened in an instance, in one place, and the file that others read it from."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path


class Counters:
    """Counts by name; sources (engines) keep their own and are added when asked.

    Args:
        path: the file; written as a whole, so that a reader never sees half of it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._own: Counter[str] = Counter()
        self._sources: list[Callable[[], Mapping[str, int]]] = []

    def add(self, name: str, count: int = 1) -> None:
        """Counts something."""
        with self._lock:
            self._own[name] += count

    def source(self, read: Callable[[], Mapping[str, int]]) -> None:
        """Adds somebody who counts by himself."""
        with self._lock:
            self._sources.append(read)

    def read(self) -> dict[str, int]:
        """All counts, by name."""
        with self._lock:
            sources, total = list(self._sources), Counter(self._own)
        for read in sources:
            total.update(read())
        return dict(sorted(total.items()))

    def write(self) -> None:
        """Writes the file.

        Raises:
            OSError: it cannot be written.
        """
        part = self._path.with_name(self._path.name + ".part")
        part.write_text(json.dumps(self.read()) + "\n", encoding="utf-8")
        os.replace(part, self._path)
