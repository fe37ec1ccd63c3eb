"""The governor: the service that owns limits, and grants slots and tokens of them to instances."""
