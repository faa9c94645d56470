"""One worker: an engine, and what takes tickets for it."""
