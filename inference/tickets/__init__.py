"""Tickets that this worker holds: its slots, and the settlement of each ticket."""
