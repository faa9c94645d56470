"""The script that generates text, trains the demo model on it and evaluates the result."""
