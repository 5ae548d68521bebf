"""Who may come in, and how much of the house they may use. Knows nothing about HTTP frameworks, models or chat."""
