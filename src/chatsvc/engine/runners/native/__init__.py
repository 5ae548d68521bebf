"""The default runner: our own forward pass in C for processors with AVX-512 VNNI, and what it is fed with."""
