"""Surfaces: what clients speak. Each dialect parses requests into jobs and writes answers in its own form."""
