"""Is a tuned model better? Read `records.py`, `losses.py`, `scores.py`, then `comparison.py`."""
