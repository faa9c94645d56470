"""Dispatch: how a job reaches a worker and its events come back, and how each attempt is accounted for."""
