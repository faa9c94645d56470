"""NATS and JetStream as every service uses them: protocol, inbox, pull, bus, and the outbox of usage events."""
