#!/usr/bin/env bash
# Shows in some minutes whether this machine trains as the CPU does: what the doctor says with each kernel against the CPU,
# tuning of a tiny model on one device and on all (three sequence modes, four context parallel algorithms, bf16 and fp32),
# resume, convert, generate.
# Usage: DEVICE=cpu bash ci/smoke.sh [--processes N] [--quick] [--output FOLDER]
# ci/smoke_npu.sh and ci/smoke_cuda.sh set DEVICE; --quick tries packed rows in bf16 alone.
# Needs: an environment as examples/setup.sh makes it. Prints: a table; FOLDER/smoke.json has the same and what the doctor
# said; exit code 0 when every row is as it must be.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../examples/qwen3/launch.sh"
export MINDSPEED_IFT_DEVICE="${DEVICE:-${MINDSPEED_IFT_DEVICE:-cpu}}" HF_HUB_OFFLINE=1
unset WORLD_SIZE RANK LOCAL_RANK
exec "$PYTHON" "$ROOT/ci/smoke.py" "$@"
