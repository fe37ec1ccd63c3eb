"""How calls travel: the ports, and their implementations on Kafka and in memory."""
