"""Hugging Face <-> Megatron. Tensors and files only: no process group, no model.

Read `names.py` (one table for both directions), then `huggingface.py`, `megatron.py` and `convert.py`.
"""
