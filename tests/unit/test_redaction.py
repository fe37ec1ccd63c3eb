"""What is taken out of text that is written down, and what is left."""

from __future__ import annotations

import json

from pelton.core.call import Failure
from pelton_platform.redaction import NOTHING, Redactor


def test_redaction_names_the_secret() -> None:
    """Wherever the value stands, as it is and as code and JSON write it."""
    value = 'top "secret"\tvalue'
    redact = Redactor({"API_KEY": value})
    for text in (value, repr(value), json.dumps({"key": value}), f"KeyError: {value!r}"):
        assert "[secret API_KEY]" in redact(text)
        assert "value" not in redact(text)
    assert redact.of_bytes(f"a {value} b\n".encode()) == b"a [secret API_KEY] b\n"
    assert redact("nothing here") == "nothing here"


def test_redaction_of_a_value_of_several_lines() -> None:
    """Output comes line by line: each longer line of a private key is one."""
    key = "-----BEGIN KEY-----\nAAAABBBBCCCC\nDDDD\n-----END KEY-----"
    redact = Redactor({"KEY": key})
    for line in ("AAAABBBBCCCC", "-----END KEY-----"):
        assert redact(f"> {line}") == "> [secret KEY]"
    assert redact("DDDD") == "DDDD"


def test_redaction_takes_the_longer_of_two_values() -> None:
    """A value that contains another one is the one that is named."""
    redact = Redactor({"SHORT": "abcdef", "LONG": "abcdef-ghijkl"})
    assert redact("abcdef-ghijkl abcdef") == "[secret LONG] [secret SHORT]"


def test_redaction_leaves_short_values_and_plain_text() -> None:
    """`yes` as a secret takes nothing away; without secrets text stays the very same object."""
    assert Redactor({"FLAG": "yes"})("yes, it is") == "yes, it is"
    text = "some text"
    assert NOTHING(text) is text
    assert NOTHING.of_bytes(b"x") == b"x"


def test_redaction_of_failures() -> None:
    """Message and traceback; what they are otherwise stays."""
    failure = Failure("ValueError", "bad abcdef", "line\nValueError: bad abcdef", "UNKNOWN", False)
    assert Redactor({"K": "abcdef"}).of_failure(failure) == Failure(
        "ValueError", "bad [secret K]", "line\nValueError: bad [secret K]", "UNKNOWN", False
    )
    assert NOTHING.of_failure(failure) is failure
