"""The engine `openai`: a model behind an OpenAI-compatible API."""
