"""The OpenAPI document. Knows what a route declares, not what it does."""
