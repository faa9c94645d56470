"""Why the stack cannot start, in one sentence for the terminal."""


class StackError(Exception):
    """One clear sentence for the person at the terminal; never a stack trace."""


class PortTakenError(StackError):
    """A port that was free when chosen is held by another program now."""
