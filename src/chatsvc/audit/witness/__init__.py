"""Witnesses: what somebody outside this host has seen of the log."""
