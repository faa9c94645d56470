"""What a credential is, for whoever makes, shows, refuses or checks one: API keys, peppers, headers."""
