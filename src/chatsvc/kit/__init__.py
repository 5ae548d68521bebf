"""The kit for machines without a network: built here, verified and installed there."""
