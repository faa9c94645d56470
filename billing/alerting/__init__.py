"""Alerts about money: found in the ledger and the stream, delivered to the operator's webhook."""
