"""Every numeric tolerance of the tests, once, with its reason. Never relaxed: a failure is a finding."""

from __future__ import annotations

LOGITS = {"atol": 2e-5, "rtol": 1e-5}
"""fp32 logits of order 1 after two layers: the same operations in another order of summation (fused QKV and gate-up)."""

GRADIENTS = {"atol": 1e-5, "rtol": 1e-4}
"""fp32 gradients of a loss sum: each sums over all positions, in another order."""

ATTENTION = {"atol": 2e-6, "rtol": 1e-5}
"""fp32 outputs of order 1 of some tens of keys: the softmax of parts, merged, against the softmax of the whole."""

ATTENTION_GRADIENTS = {"atol": 1e-5, "rtol": 1e-4}
"""fp32 gradients of order 1 to 10: sums over the same terms in another order."""

ATTENTION_PARTS = 3e-6
"""Of the largest value (at least 1), fp32: outputs and gradients of attention merged from the parts of several ranks."""

ATTENTION_BF16 = 2e-2
"""Of the largest value (at least 1): the same in bf16 (8 bits), against fp32; inputs equal, results rounded once or twice."""

LAYOUT_LOSS = {"rel": 1e-5, "abs": 0.0}
"""fp32 losses and gradient norms of some steps: splitting changes the order of summation, and steps carry it on."""

BF16_LAYOUT = {"rel": 2e-3, "abs": 0.0}
"""bf16 losses and gradient norms of some steps in another layout: partial sums are rounded to 8 bits before they meet."""

BF16_STEPS = {"rel": 1e-2, "abs": 0.0}
"""bf16 losses of twenty steps against fp32: weights and activations have 8 bits, and steps carry the difference on."""

TWENTY_STEPS_LOSS = {"rel": 1e-5, "abs": 0.0}
"""fp32 losses of twenty AdamW steps against plain torch, packed against one by one."""

TWENTY_STEPS_WEIGHTS = {"atol": 1e-4, "rtol": 1e-4}
"""fp32 weights after twenty AdamW steps: Adam divides by small second moments, which magnifies rounding."""

LORA_STEPS_LOSS = {"rel": 1e-5, "abs": 0.0}
"""fp32 losses of ten AdamW steps of adapters against PEFT, packed against one by one."""

LORA_STEPS_WEIGHTS = {"atol": 1e-4, "rtol": 1e-4}
"""fp32 weights with the adapters of these steps merged: as `TWENTY_STEPS_WEIGHTS`."""

KERNEL = {"atol": 2e-6, "rtol": 1e-5}
"""fp32 results and gradients of order 1 of a fused kernel and of its plain twin: the same terms, rounded elsewhere."""

KERNEL_BF16 = 2e-2
"""Of the largest value: a fused kernel in bf16 (8 bits) against its twin in fp32 on the unrounded inputs."""

MERGED_WEIGHTS = {"atol": 1e-6, "rtol": 1e-5}
"""fp32 weights of order 0.1 with one adapter merged by us and by PEFT: a product of rank 4 and a sum, in another order."""

PLANNED_ACTIVATIONS = 0.01
"""Of what autograd keeps: every tensor is counted by its shape, but for boundaries and other small integers."""

PLANNED_PEAK = 0.10
"""Of what lives at once in forward and backward passes: of gradients that come and go only the largest are counted."""
