"""Calling user code: sync, async, generators, the context of an attempt."""
