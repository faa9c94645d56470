"""Periodic jobs that only the leader runs: retention, signing of daily roots, worker uptime."""
