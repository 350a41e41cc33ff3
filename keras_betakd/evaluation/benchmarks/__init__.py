"""Benchmarks: for each its questions, its prompt, its score and its `Benchmark`."""
