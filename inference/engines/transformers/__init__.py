"""The engine `transformers`. torch and transformers are imported here and nowhere else."""
