"""Configuration: where it comes from and what it may be."""
