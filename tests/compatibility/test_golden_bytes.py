"""Golden bytes: what a version once wrote is what this one writes and reads."""

from __future__ import annotations

import json

import pytest

import pelton_schemas
from pelton.protocol import codec
from pelton.protocol.avro import Subject
from support.golden_cases import GOLDEN, cases

BYTES: dict[str, str] = json.loads(GOLDEN.read_text())
CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_written_as_ever(name: str) -> None:
    """Each value gives exactly its golden bytes: other versions will read them."""
    case = CASES[name]
    assert case.encode(case.value).hex() == BYTES[name]


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_read_as_ever(name: str) -> None:
    """All golden bytes, of whatever version, give the value they were written from."""
    case = CASES[name]
    assert case.decode(bytes.fromhex(BYTES[name])) == case.value


@pytest.mark.parametrize("subject", pelton_schemas.SUBJECTS)
def test_every_version_of_every_contract_has_golden_bytes(subject: str) -> None:
    """No version of a contract is without bytes that prove it can still be read."""
    assert subject in codec.SUBJECTS
    for number, schema in pelton_schemas.versions(subject).items():
        prefix = Subject(subject, {number: schema}).prefix.hex()
        assert any(name.startswith(f"{subject}/") and data.startswith(prefix) for name, data in BYTES.items())
