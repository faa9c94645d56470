"""What the ledger's writer, its readers and its verifier share: hash chain, Merkle roots, limits. No I/O."""
