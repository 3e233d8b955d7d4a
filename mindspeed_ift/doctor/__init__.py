"""Does this machine do, and if not, what is to be done: `examine.py`, whose checks are in `host.py`, `belonging.py` and
`devices/diagnosis`. What could break the process that asks runs in processes of their own (`processes.py`).
"""
