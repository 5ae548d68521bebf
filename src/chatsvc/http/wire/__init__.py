"""What every route shares: around a request, its body, its errors, its events."""
