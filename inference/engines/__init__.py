"""Engines: the protocol between a worker and what generates tokens, and its implementations."""
