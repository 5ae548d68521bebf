"""The kit for machines without a network: built on a machine with a network, verified and installed on one without."""
