"""Weights encrypted at rest."""
