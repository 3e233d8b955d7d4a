"""Is a tuned model better? Read `records.py`, `losses.py`, `scores.py`, `comparison.py`, then `benchmarks.py`."""
