"""Alembic's folder. Each file in ``versions`` goes forward and back."""
