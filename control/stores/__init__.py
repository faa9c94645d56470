"""What the admin API reads and writes in Postgres and JetStream."""
