"""The wire: the only room that knows Flask. Turns requests into domain values and domain errors into answers."""
