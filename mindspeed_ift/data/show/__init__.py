"""A dataset in, something to look at out: coloured tokens in a terminal, a page of figures and records.

Read opening.py (documents, taken apart), survey.py (figures of all of them), terminal.py, page.py. Part of `data`, and
imports only from there.
"""
