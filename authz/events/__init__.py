"""The NATS messages that authz receives or sends beside checks."""
