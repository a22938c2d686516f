"""The demo: SmolLM2 with the shipped PersRMs."""
