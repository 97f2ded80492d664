"""Probes: each answers one question about a model, and leaves no trace on it."""
