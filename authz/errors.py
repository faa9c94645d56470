"""Failures inside authz, before they become an answer."""


class DatabaseError(Exception):
    """Postgres did not answer in time, or not with what was asked for."""
