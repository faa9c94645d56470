"""The OpenAI dialect: JSON over HTTP, as the official SDKs write and read it."""
