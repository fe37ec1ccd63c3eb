"""Call ids: layout, reply partition, order and text."""

from __future__ import annotations

from uuid import UUID

import pytest

from pelton.core.call import (
    MAX_REPLY_PARTITIONS,
    call_id_text,
    call_time_ms,
    mint_call_id,
    parse_call_id,
    reply_partition,
)

NOW = 1_790_000_000_123


def test_call_id_is_a_uuid_of_version_7() -> None:
    """The layout is the one RFC 9562 gives for version 7, variant included, whatever the dice say."""
    for dice in (bytes(8), b"\xff" * 8):
        uuid = UUID(bytes=mint_call_id(NOW, 4095, dice))
        assert uuid.version == 7
        assert uuid.variant == "specified in RFC 4122"
        assert uuid.int >> 80 == NOW


@pytest.mark.parametrize("partition", [0, 1, 7, 4095])
def test_call_id_carries_time_and_reply_partition(partition: int) -> None:
    """What was minted in can be read out: broker time and reply partition."""
    call_id = mint_call_id(NOW, partition, b"\xa5" * 8)
    assert len(call_id) == 16
    assert call_time_ms(call_id) == NOW
    assert reply_partition(call_id) == partition


@pytest.mark.parametrize("partition", [-1, MAX_REPLY_PARTITIONS])
def test_call_id_refuses_a_partition_of_more_than_12_bits(partition: int) -> None:
    """A partition that does not fit never becomes another one."""
    with pytest.raises(ValueError, match="12 bits"):
        mint_call_id(NOW, partition, bytes(8))


def test_call_ids_sort_by_time() -> None:
    """A later id is greater, whatever partition and dice."""
    ids = [mint_call_id(NOW + step, 4095 - step, bytes([255 - step]) * 8) for step in range(200)]
    assert ids == sorted(ids)


def test_call_ids_differ_by_dice_alone() -> None:
    """62 bits of the dice end up in the id: same instant and partition do not collide."""
    ids = {mint_call_id(NOW, 3, number.to_bytes(8, "big")) for number in range(1000)}
    assert len(ids) == 1000


def test_call_id_text_goes_there_and_back() -> None:
    """People read and give ids as UUID text."""
    call_id = mint_call_id(NOW, 5, b"12345678")
    text = call_id_text(call_id)
    assert len(text) == 36
    assert parse_call_id(text) == call_id


@pytest.mark.parametrize("text", ["", "nonsense", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"])
def test_other_text_is_no_call_id(text: str) -> None:
    """Text that is no UUID, or one of another version, is refused with ValueError."""
    with pytest.raises(ValueError):
        parse_call_id(text)
