"""The child processes of a stack: spawned, kept running, and ended."""
