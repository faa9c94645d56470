"""The clients of Postgres and Valkey that services share."""
