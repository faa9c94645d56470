"""A stack for the tests of this folder."""

from tests.kit.stack import manifest, stack, start_stack

__all__ = ["manifest", "stack", "start_stack"]
