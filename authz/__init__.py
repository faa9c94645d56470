"""authz: Envoy's external authorisation: who calls, may it, how much is left, and the reservation."""
