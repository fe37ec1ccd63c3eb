"""Kafka, through confluent-kafka: the only package that imports the client."""
