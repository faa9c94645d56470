"""From AIModel manifests to running workers, on this machine."""
