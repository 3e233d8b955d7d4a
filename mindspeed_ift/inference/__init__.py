"""Answers from a tuned model. Read `load.py`, then `generate.py`."""
