"""The child process that runs user code: it holds no Kafka client, no credentials and no keys."""
