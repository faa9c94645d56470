"""Accounting: who publishes the usage event of each attempt, what it counts, and whom its end concerns."""
