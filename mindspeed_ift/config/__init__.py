"""What is asked: typed options, their flags and the rules between them. Imports no torch and none of our packages.

Read `flags.py` (dataclass -> command line) first, then `architecture.py`, `layout.py`, `tuning.py`, `rules.py`.
"""
