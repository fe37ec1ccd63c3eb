"""Pickles on their way through a coordinator: checked before an executor sees them, signed after."""

from __future__ import annotations

from dataclasses import replace

from pelton.core.call import Result
from pelton.core.decisions import Start
from pelton.errors import PayloadError, RecordError, SignatureError
from pelton.protocol.codec import decode_invocation
from pelton.protocol.pickles import ARGUMENTS, RESULT, check, is_pickled, sign
from pelton.protocol.signing import Keyring


class Pickles:
    """What one function takes and gives.

    Args:
        keyring: of the namespace.
        function: its name.
    """

    def __init__(self, keyring: Keyring, function: str) -> None:
        self._keyring = keyring
        self._function = function

    def refuse(self, start: Start) -> str:
        """Why an attempt must not start with these arguments, "" when it may."""
        try:
            arguments = decode_invocation(start.value).arguments
            if is_pickled(arguments):
                check(self._keyring, self._function, start.call_id, ARGUMENTS, arguments)
        except (SignatureError, PayloadError, RecordError) as error:
            return f"arguments: {error}"
        return ""

    def signed(self, result: Result) -> Result:
        """A result whose pickled items are signed."""
        items = (
            sign(self._keyring, self._function, result.call_id, RESULT, item) if is_pickled(item) else item
            for item in result.items
        )
        return replace(result, items=tuple(items))
