"""Reads the log back: verifies, shows, exports and prunes it."""
