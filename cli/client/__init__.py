"""The admin API as commands use it: a connection, and its methods with plain values."""
