"""API keys and signed tokens: how they are found, verified and cached."""
