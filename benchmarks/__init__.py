"""What is measured: run from the repository's root, as `python -m benchmarks.latency.peers`."""
