"""The servers that a stack embeds (Postgres, Valkey, NATS, Envoy): their programs, their start, their probes."""
