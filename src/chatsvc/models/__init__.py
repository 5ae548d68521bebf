"""Model supply: fetch, import, convert, verify, seal, bundle. Knows nothing about serving."""
