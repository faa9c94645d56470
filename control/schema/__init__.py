"""The database schema: the migrations and the code that applies them."""
