"""The billing service: records every usage event in the ledger once, prices it, and settles what authz reserved."""
