"""More waiting calls than are kept in memory, each of which needs a call of its own function."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.core.spec import FunctionKind, ParameterSpec
from pelton.protocol.codec import decode_invocation
from support.embedded_broker import Broker
from support.worker_instance import Platform, platform_on, wait_until

ANY = (ParameterSpec("args", "VAR_POSITIONAL", False),)

SOURCE = """
from pelton import function_ref

def root(number, child=False):
    return number if child else function_ref("root")(number, True) + 1
"""


@pytest.fixture
def platform(broker: Broker, tmp_path: Path) -> Iterator[Platform]:
    """A namespace of its own."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        yield platform


def run_backlog(platform: Platform, count: int, seconds: float) -> int:
    """Submits so many roots to one partition, then starts one instance; returns the records of the topic."""
    platform.deploy(SOURCE, {"root": FunctionKind.SYNC}, slots=2, partitions=1, parameters=ANY)
    ids = platform.submit("root", [(number,) for number in range(count)])
    platform.start_ready()
    found = platform.wait_all("root", ids, seconds)
    assert [found[each].value for each in ids] == [number + 1 for number in range(count)]
    wait_until(lambda: platform.all_done("root"), 30, "every record finished")
    return sum(
        decode_invocation(record.value).parent is None
        for record in platform.read(platform.topics.invocations("root"))
    )


def test_nested_backlog_larger_than_the_window_ends(platform: Platform) -> None:
    """1,500 roots, 256 of which may wait: their children behind the others are reached, and all end."""
    records = run_backlog(platform, 1_500, 90)
    # Most roots were met in front of children, and went to the tail at least once.
    assert records > 1_500


@pytest.mark.chaos_long
@pytest.mark.timeout(1200)
def test_nested_backlog_of_20_000_ends(platform: Platform) -> None:
    """The worst case of the wire's rules, on one instance with two slots."""
    assert run_backlog(platform, 20_000, 900) > 20_000
