"""What runs a graph, and the memory that it reads and writes."""
