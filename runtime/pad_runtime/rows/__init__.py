"""What a request computes: rows, readings and the arrays that a graph takes."""
