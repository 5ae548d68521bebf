"""The configuration: its keys and bounds, and where values come from."""
