"""Proof as a command: whether what lies on the disk is what it says it is, and a served model is asked as it was trained."""
