"""Answers from a tuned model. Read `load.py`, `generate.py`, then `decoder.py` and `layers.py`."""
