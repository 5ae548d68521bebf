"""gunicorn's worker and its connections. Knows no routes."""
