"""Commands of the stack on this machine: starting, stopping, its parts and their logs."""
