"""What every route shares: hooks, context, bodies, errors, server-sent events."""
