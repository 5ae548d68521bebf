"""How much a caller may use: the queue for the engine, rates, quotas."""
