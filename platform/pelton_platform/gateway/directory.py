"""What the gateway knows of containers: what the deployer of this machine has written."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pelton_platform import telemetry
from pelton_platform.deploy.home import Home, HomeError, read_json
from pelton_platform.deploy.port import READY, UNKNOWN

_log = telemetry.get_logger(__name__)

NOTHING: Final[Mapping[str, Any]] = {
    "status": UNKNOWN,
    "version": 0,
    "wanted": 0,
    "instances": (),
    "reason": "no container of this name is deployed",
    "notes": (),
}
"""The state of a container that is not there."""


class Backend(NamedTuple):
    """An instance that takes requests.

    Attributes:
        instance: Its id.
        port: Its port on the loopback interface.
    """

    instance: str
    port: int


class Directory:
    """The containers of one home folder.

    Only what the deployer wrote into the private folder of the platform leads anywhere: nothing that comes
    over a topic or in a request names an address.
    """

    def __init__(self, home: Home) -> None:
        self._file = home.deployer_file
        self._stamp: tuple[int, int] | None = None
        self._data: dict[str, Any] = {}
        self._turn = itertools.count()

    def state(self, container: str) -> Mapping[str, Any]:
        """Return what is known of a container."""
        found: Mapping[str, Any] | None = self._read().get("containers", {}).get(container)
        return NOTHING if found is None else found

    def scaling(self, container: str) -> Mapping[str, Any]:
        """Return the last decision on its instances."""
        found: Mapping[str, Any] = self._read().get("scaling", {}).get(container, {})
        return found

    def names(self) -> list[str]:
        """Return the names of all containers."""
        return sorted(self._read().get("containers", {}))

    def backends(self, container: str) -> list[Backend]:
        """Return the instances that take requests, each time another one first."""
        found = [
            Backend(one["instance"], one["port"])
            for one in self.state(container)["instances"]
            if one["state"] == READY and one["port"]
        ]
        start = next(self._turn) % len(found) if found else 0
        return found[start:] + found[:start]

    def _read(self) -> dict[str, Any]:
        try:
            stat = self._file.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp != self._stamp:
                self._data, self._stamp = read_json(self._file) or {}, stamp
        except (OSError, HomeError) as error:
            _log.warning("state-unreadable", reason=str(error))
            self._data, self._stamp = {}, None
        return self._data
