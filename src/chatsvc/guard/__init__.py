"""Authentication, authorisation and limits. Knows nothing about HTTP frameworks, models or chat."""
