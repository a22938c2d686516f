"""The tensor side of PAD-RT: contract, manifest, providers, rows and the decode step. Knows tensors, not text."""
