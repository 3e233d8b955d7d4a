"""Megatron-core's GPT as Qwen3.

Read `build.py`, then `backend.py`, `attention.py`, `rotary.py`, `experts.py`, `dispatch.py`, `head.py`.
"""
