"""Shared by the ledger's writer, readers and verifier: usage columns, prices, periods, limits, hash chain; no I/O."""
