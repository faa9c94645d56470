"""The local stack: embedded servers, the supervisor that keeps them, and the composed services process."""
