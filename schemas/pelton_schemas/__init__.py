"""The Avro contracts of Pelton, data only: one folder per subject, one `.avsc` file per version."""
