"""The audit log: records, chain, Merkle tree, checkpoints, verification. Knows nothing else of the service."""
