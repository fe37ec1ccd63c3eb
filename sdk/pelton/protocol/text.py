"""Texts that people wrote, as UTF-8 whatever they contain."""

from __future__ import annotations


def encode_text(text: str) -> bytes:
    """UTF-8; lone surrogates, which UTF-8 cannot carry, become their escapes.

    A message of an exception may contain anything, and an outcome that cannot be written ends no call.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def clean_text(text: str) -> str:
    """The text with lone surrogates escaped, otherwise itself."""
    return text if text.isascii() else encode_text(text).decode()
