"""Deleting from the log what is finished: waiting calls never expire, finished ones do not stay."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Executor

from pelton.core.call import InputPartition
from pelton.errors import TransportError
from pelton.protocol.topics import Topics
from pelton.transport.kafka.admin import Admin

_log = logging.getLogger(__name__)


class Trimmer:
    """Deletes records below acknowledged committed offsets, aside from whoever asks.

    Args:
        admin: asks the broker.
        topics: names in the namespace.
        helpers: threads that may block.
    """

    def __init__(self, admin: Admin, topics: Topics, helpers: Executor) -> None:
        self._admin = admin
        self._topics = topics
        self._helpers = helpers

    def trim(self, function: str, offsets: Mapping[InputPartition, int]) -> None:
        """Deletes what lies below these offsets; what fails is deleted the next time."""
        places = {
            (self._topics.input(function, partition.topic), partition.partition): offset
            for partition, offset in offsets.items()
        }
        self._helpers.submit(self._delete, function, places)

    def _delete(self, function: str, places: Mapping[tuple[str, int], int]) -> None:
        try:
            self._admin.delete_records(places)
        except TransportError as error:
            _log.warning("finished records of %s are not deleted now: %s", function, error)
