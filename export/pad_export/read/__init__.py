"""Other people's files: checkpoints, adapters, PersRMs, tokenizers."""
