"""How models come in: fetched, imported, converted."""
