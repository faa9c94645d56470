"""The admin API: accounts, keys, models, usage; and the database schema."""
