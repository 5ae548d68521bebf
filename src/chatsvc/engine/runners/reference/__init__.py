"""The reference runner in torch: slow, exact, and what the others are compared with."""
