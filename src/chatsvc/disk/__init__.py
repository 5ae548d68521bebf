"""Makes bytes durable: appending, writing whole files, locks. Knows nothing about what is in them."""
