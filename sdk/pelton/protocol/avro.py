"""Avro single-object encoding: contracts by fingerprint, checks of untrusted bytes, schema resolution."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from threading import Lock
from typing import Any, Final

import pelton_schemas
from pelton.errors import RecordError
from pelton.protocol.varint import decode_long

MARKER: Final = b"\xc3\x01"
"""The two bytes every Avro single object starts with."""

PREFIX_BYTES: Final = 10
"""The marker and the fingerprint of the writer's schema, CRC-64-AVRO, little-endian."""

Values = dict[str, Any]
"""A record as fastavro takes and gives it."""


class Subject:
    """One contract with all its versions: values are written in the latest and read from any.

    fastavro is imported and schemas are parsed when first needed: programs that only relay never do.

    Args:
        name: a subject of `pelton_schemas`.
        versions: schema text by version number; None reads them from `pelton_schemas`.
    """

    def __init__(self, name: str, versions: Mapping[int, str] | None = None) -> None:
        self.name = name
        self._versions = versions
        self._lock = Lock()
        self._latest: Any = None
        self._prefix = b""
        self._writers: dict[bytes, Any] = {}

    @property
    def prefix(self) -> bytes:
        """The ten bytes that a value of the latest version starts with."""
        self._load()
        return self._prefix

    def knows(self, data: bytes | None) -> bool:
        """Whether these bytes start like a value of this subject, in any version known here."""
        if data is None or data[:2] != MARKER:
            return False
        self._load()
        return data[:PREFIX_BYTES] in self._writers

    def learn(self, schema: str) -> bytes:
        """Makes a writer's schema known that is none of the versions shipped; returns its prefix.

        Raises:
            ValueError: it is no Avro schema.
        """
        self._load()
        prefix, parsed = _parse(schema)
        with self._lock:
            self._writers = {**self._writers, prefix: parsed}
        return prefix

    def encode(self, values: Values) -> bytes:
        """Writes a record in the latest version.

        Raises:
            RecordError: a value does not fit its field.
        """
        from fastavro import schemaless_writer

        self._load()
        out = io.BytesIO(self._prefix)
        out.seek(PREFIX_BYTES)
        try:
            schemaless_writer(out, self._latest, values)
        except (ValueError, TypeError, OverflowError, LookupError, AttributeError) as error:
            raise RecordError(f"a {self.name} that cannot be written: {error}") from error
        return out.getvalue()

    def decode(self, data: bytes | None) -> Values:
        """Reads a record of any known version as one of the latest.

        Raises:
            RecordError: null, no Avro single object, of an unknown fingerprint, truncated, over-long, or
                otherwise not what its schema says.
        """
        from fastavro import schemaless_reader
        from fastavro.read import SchemaResolutionError

        self._load()
        data = check_marker(self.name, data)
        writer = self._writers.get(data[:PREFIX_BYTES])
        if writer is None:
            raise RecordError(
                f"the {self.name} was written with a schema unknown here,"
                f" fingerprint {data[2:PREFIX_BYTES].hex()}: upgrade readers before writers"
            )
        try:
            end = _skip_record(writer, data, PREFIX_BYTES)
        except IndexError:
            raise RecordError(f"the {self.name} is truncated at {len(data)} bytes") from None
        if end != len(data):
            raise RecordError(f"the {self.name} has {len(data) - end} bytes after its end")
        body = io.BytesIO(data)
        body.seek(PREFIX_BYTES)
        try:
            values = schemaless_reader(body, writer, self._latest)
        except (SchemaResolutionError, ValueError, TypeError, LookupError, EOFError) as error:
            raise RecordError(f"a {self.name} that cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise RecordError(f"a {self.name} that is no record")
        return values

    def _load(self) -> None:
        """Parses the schemas once."""
        if self._latest is not None:
            return
        with self._lock:
            versions = self._versions or pelton_schemas.versions(self.name)
            writers = {}
            latest = None
            for number in sorted(versions):
                prefix, latest = _parse(versions[number])
                writers[prefix] = latest
                self._prefix = prefix
            self._writers = writers
            self._latest = latest


def check_marker(name: str, data: bytes | None) -> bytes:
    """Returns `data` when it starts like an Avro single object.

    Raises:
        RecordError: it does not; `name` says what was expected.
    """
    if data is None:
        raise RecordError(f"null instead of a {name}")
    if data[:2] != MARKER or len(data) < PREFIX_BYTES:
        raise RecordError(
            f"{len(data)} bytes that are no {name}: they do not start with C3 01 and a fingerprint"
        )
    return data


def _parse(schema: str) -> tuple[bytes, Any]:
    """The prefix and the parsed form of a schema."""
    from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

    plain = json.loads(schema)
    digest = fingerprint(to_parsing_canonical_form(plain), "CRC-64-AVRO")
    return MARKER + bytes.fromhex(digest), parse_schema(plain)


def _skip_record(parsed: Any, data: bytes, at: int) -> int:
    """Walks over one value and checks everything fastavro takes on trust.

    Lengths, counts, union branches, enum indexes and UTF-8 are checked before anything is allocated for them.

    Returns:
        Where the value ends.

    Raises:
        IndexError: the data ends inside it.
        RecordError: it is not what the schema says.
    """
    names = parsed.get("__named_schemas", {}) if isinstance(parsed, dict) else {}
    return _skip(parsed, names, data, at)


def _skip(schema: Any, names: Mapping[str, Any], data: bytes, at: int) -> int:
    """Walks over a value of a schema."""
    if isinstance(schema, list):
        branch, at = decode_long(data, at)
        if not 0 <= branch < len(schema):
            raise RecordError(f"branch {branch} of a union of {len(schema)}")
        return _skip(schema[branch], names, data, at)
    kind = schema["type"] if isinstance(schema, dict) else schema
    match kind:
        case "null":
            return at
        case "boolean":
            if data[at] > 1:
                raise RecordError(f"a boolean of {data[at]}")
            return at + 1
        case "int" | "long":
            return _skip_number(kind, data, at)
        case "float":
            return _checked_end(data, at, 4)
        case "double":
            return _checked_end(data, at, 8)
        case "bytes" | "string":
            return _skip_text(kind, data, at)
        case "fixed":
            return _checked_end(data, at, schema["size"])
        case "enum":
            index, at = decode_long(data, at)
            if not 0 <= index < len(schema["symbols"]):
                raise RecordError(f"symbol {index} of an enum of {len(schema['symbols'])}")
            return at
        case "array" | "map":
            return _skip_blocks(schema, names, data, at)
        case "record" | "error":
            for field in schema["fields"]:
                at = _skip(field["type"], names, data, at)
            return at
    return _skip(names[kind], names, data, at)


def _skip_number(kind: str, data: bytes, at: int) -> int:
    """Walks over a number."""
    number, at = decode_long(data, at)
    if kind == "int" and not -(2**31) <= number < 2**31:
        raise RecordError(f"an int of {number}")
    return at


def _skip_text(kind: str, data: bytes, at: int) -> int:
    """Walks over a length and so many bytes."""
    length, at = decode_long(data, at)
    end = _checked_end(data, at, length)
    if kind == "string":
        try:
            data[at:end].decode()
        except UnicodeDecodeError as error:
            raise RecordError(f"a text that is no UTF-8: {error}") from error
    return end


def _skip_blocks(schema: Mapping[str, Any], names: Mapping[str, Any], data: bytes, at: int) -> int:
    """Walks over the blocks of an array or map."""
    while True:
        count, at = decode_long(data, at)
        if count == 0:
            return at
        if count < 0:
            count = -count
            size, at = decode_long(data, at)
            _checked_end(data, at, size)
        if count > len(data) - at:
            raise IndexError  # every item takes at least a byte
        for _ in range(count):
            if schema["type"] == "map":
                at = _skip_text("string", data, at)
                at = _skip(schema["values"], names, data, at)
            else:
                at = _skip(schema["items"], names, data, at)


def _checked_end(data: bytes, at: int, length: int) -> int:
    """Where so many bytes end."""
    if length < 0:
        raise RecordError(f"a length of {length}")
    if at + length > len(data):
        raise IndexError
    return at + length
