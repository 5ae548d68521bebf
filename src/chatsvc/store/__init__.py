"""Tables, migrations and the database handle. Knows nothing about what the rows mean."""
