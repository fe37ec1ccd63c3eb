"""The caller's half: calls, futures, streams, attach."""
