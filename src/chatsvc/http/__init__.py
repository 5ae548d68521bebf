"""HTTP: the only room that imports Flask. Turns requests into domain values, and results and errors into answers."""
