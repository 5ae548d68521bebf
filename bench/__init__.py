"""Measurements of the whole service, repeatable by anyone: ``python -m bench`` (or ``make bench``)."""
