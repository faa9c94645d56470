"""The router: OpenAI and native surfaces in, tickets and worker streams out."""
