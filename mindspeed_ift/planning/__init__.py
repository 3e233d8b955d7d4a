"""How much memory and time a run takes, as arithmetic: no torch, no device, nothing built.

Read `parameters` (what a rank holds), `activations` (what a token leaves for the backward pass), `memory` (the parts of a
device's memory), `throughput` (operations and time), then `search` (the best layouts for N devices).
"""
