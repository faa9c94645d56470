"""The OpenAPI document of the admin API, generated from its protos; what is served is the generated file."""
