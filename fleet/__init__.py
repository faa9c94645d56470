"""Keeps workers running for the AIModel manifests in KV `models`."""
