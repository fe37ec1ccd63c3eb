"""Consumer programs that run as they stand, on the SDK alone; this release has none of its own yet."""
