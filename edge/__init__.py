"""The edge: Envoy's configuration, defined once in typed Python and rendered as a static bootstrap."""
