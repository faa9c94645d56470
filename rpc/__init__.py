"""How every service serves gRPC: the server with its health and drain, and the interceptor around each call."""
