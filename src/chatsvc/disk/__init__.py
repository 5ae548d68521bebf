"""Makes bytes durable: appends to files, writes whole ones, renames, locks. Knows nothing about what is in them."""
