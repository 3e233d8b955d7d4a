"""Proof as a command: whether what lies on the disk is what it says it is."""
