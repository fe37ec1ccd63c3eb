"""Values to bytes and names, and back: topics, headers, Avro bodies, payloads, signatures, frames."""
