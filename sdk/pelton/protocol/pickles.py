"""Payloads with pickled parts: each signed for one function, one call and one direction."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.msgpack import Ext

from pelton.core.call import CallId
from pelton.errors import PayloadCorrupt, SignatureError
from pelton.protocol.extensions import Extension, extension_code
from pelton.protocol.signing import Keyring, unverified_body

MARK: Final = b"PLS1"
"""In every signed payload, word for word: what does not have it needs no look."""

ARGUMENTS: Final = "arguments"
"""From a caller to a function."""

RESULT: Final = "result"
"""From a function to its callers: a value, or a chunk."""

_pack = msgspec.msgpack.Encoder().encode


def is_pickled(data: bytes) -> bool:
    """Whether a payload has pickled parts, signed or not yet."""
    return extension_code(data) == Extension.PICKLED


def wrap(payload: bytes) -> bytes:
    """Marks a payload as one with pickled parts, for whoever signs it."""
    return _pack(Ext(Extension.PICKLED, payload))


def sign(keyring: Keyring, function: str, call_id: CallId, direction: str, data: bytes) -> bytes:
    """A payload that `wrap` made, with a signature that is worth nothing for any other call or direction.

    Args:
        keyring: signs.
        function: name of the function.
        call_id: of the call.
        direction: `ARGUMENTS` or `RESULT`.
        data: the payload.
    """
    return wrap(keyring.seal(_purpose(function, call_id, direction), _inside(data)))


def check(keyring: Keyring, function: str, call_id: CallId, direction: str, data: bytes) -> None:
    """Returns when `sign` made this payload with an active key for this call and direction.

    Raises:
        SignatureError: it did not.
        PayloadCorrupt: that is no payload with pickled parts.
    """
    keyring.open(_purpose(function, call_id, direction), _inside(data))


def content(data: bytes) -> bytes:
    """What was signed: only for who had it checked.

    Raises:
        PayloadCorrupt: it is not signed at all.
    """
    try:
        return unverified_body("pickled payload", _inside(data))
    except SignatureError as error:
        raise PayloadCorrupt(str(error)) from error


def _inside(data: bytes) -> bytes:
    try:
        found = msgspec.msgpack.decode(data)
    except msgspec.MsgspecError as error:
        raise PayloadCorrupt(f"a payload that cannot be read: {error}") from error
    if not isinstance(found, Ext) or found.code != Extension.PICKLED:
        raise PayloadCorrupt("a payload without pickled parts")
    return bytes(found.data)


def _purpose(function: str, call_id: CallId, direction: str) -> str:
    return f"cloudpickle/{function}/{call_id.hex()}/{direction}"
