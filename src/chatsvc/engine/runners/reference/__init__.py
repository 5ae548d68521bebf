"""The reference runner in torch: slow and exact; the others are compared with it."""
