"""What stops the stack from starting, said in one sentence."""


class StackError(Exception):
    """One clear sentence for the person at the terminal; never a stack trace."""


class PortTakenError(StackError):
    """A port that was free when chosen is held by another program now."""
