"""Witnesses: checkpoints of the log that are kept outside this host."""
