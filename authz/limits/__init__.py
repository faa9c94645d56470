"""Rate limits and budgets: counting in Valkey, reservations, refusals, and what happens when Valkey fails."""
