"""HTTP: the only package that imports Flask. Turns requests into domain values, and results and errors into answers."""
