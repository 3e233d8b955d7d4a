#!/usr/bin/env bash
# Sets up the environment as the quickstart does and runs all tests.
# Usage: bash ci/test.sh [--quick] [pytest arguments]      --quick leaves out slow and distributed tests
# Needs: what examples/setup.sh needs. Prints: pytest's report; exit code 0 when every test passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRAS=dev
source examples/setup.sh
selection=()
if [ "${1:-}" = "--quick" ]; then
    shift
    selection=(-m "not slow and not distributed")
fi
for script in ci/*.sh examples/*.sh examples/qwen3/*.sh; do
    [ -e "$script" ] && bash -n "$script"
done
"$PYTHON" -m tests.device.torch_npu_wheel  # into build/; where it cannot be had, the tests that need it skip
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# As examples/qwen3/launch.sh does, and for its reason.
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
"$PYTHON" -m ruff check mindspeed_ift tests tools benchmarks ci setup.py
"$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q "${selection[@]+"${selection[@]}"}" "$@" tests
