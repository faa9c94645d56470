"""Counts every usage event once, prices it, and settles what authz reserved."""
