"""Tickets: where they come from, the slots that they occupy, and how each is settled."""
