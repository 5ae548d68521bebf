"""The database: accounts, sessions, keys, quotas, conversations. Knows nothing about HTTP or what a row is used for."""
