"""Answers from a tuned model. Read `load.py`, `generate.py`, then `decoder.py`, `layers.py` and `stages.py`."""
