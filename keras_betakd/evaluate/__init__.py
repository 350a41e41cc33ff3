"""The command that lets a model answer a benchmark and scores the answers.

    python -m keras_betakd.evaluate --model PRESET --benchmark gqa --data DIR

`--help` says which files each benchmark wants, and what is written.
"""
