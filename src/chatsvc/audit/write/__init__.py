"""Writes the log: the only place that opens it for writing."""
