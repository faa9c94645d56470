"""Benchmarks: the platform as a user starts it, under load from one lean client."""
