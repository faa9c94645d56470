"""The native dialect: the typed messages of uplion.inference.v1, which are its schema, and gRPC statuses."""
