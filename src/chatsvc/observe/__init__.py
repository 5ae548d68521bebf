"""Metrics, and detection of outages for ``/healthz``. Knows nothing about who reads them."""
