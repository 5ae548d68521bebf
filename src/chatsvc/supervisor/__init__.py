"""Starts, watches and ends the engine and the web process. Knows nothing about what they do."""
