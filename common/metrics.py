"""Every Prometheus metric of the platform: one module, so that names stay one vocabulary and labels bounded sets.

No account, key or request id is ever a label. Names follow conventions.md 4.4 to 4.6 where they exist.
"""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
