"""Keeps the engine and the web process running. Knows nothing about what they do."""
