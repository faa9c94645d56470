"""A check, from Envoy's CheckRequest to the CheckResponse: the caller, its permissions, the decision and its log."""
