"""Fetching, importing and converting models."""
