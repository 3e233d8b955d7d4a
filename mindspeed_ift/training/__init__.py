"""Dataset to trained checkpoint. Read `tune.py` first, then `step.py`, `optimizer.py`, `state.py`, `metrics.py`."""
