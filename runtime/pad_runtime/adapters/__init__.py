"""LoRA factors and feature heads of PersRMs, as inputs of a graph."""
