"""Metrics. Knows nothing about who reads them."""
