"""What a caller shows: tokens and their keys, sessions, API keys."""
