"""The pages for people. Their files lie in ``static``."""
