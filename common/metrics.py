"""Bucket boundaries that the histograms of several services share.

Each service declares its metrics in its own `metrics.py`, so that a process exports only what it can count. No account,
key or request id is ever a label: labels are bounded sets.
"""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
