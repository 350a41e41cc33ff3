"""The benchmarks: questions, prompts, scores."""
