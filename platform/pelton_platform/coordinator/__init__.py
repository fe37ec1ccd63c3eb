"""The coordinator: the half of a worker instance that owns Kafka; user code runs in executors, never here."""
