#!/usr/bin/env bash
# ci/smoke.sh on the Ascend devices of this machine.
# Usage: bash ci/smoke_npu.sh [--processes N] [--quick] [--output FOLDER]
# Needs: driver, firmware, CANN (its set_env.sh is sourced from where it usually lies, or from SET_ENV), the torch-npu of
# this torch. Prints and returns what ci/smoke.sh does.
set -euo pipefail
for file in "${SET_ENV:-}" /usr/local/Ascend/ascend-toolkit/set_env.sh /usr/local/Ascend/cann/set_env.sh; do
    if [ -z "${ASCEND_HOME_PATH:-}" ] && [ -f "$file" ]; then
        set +u  # it reads variables that may not be set
        source "$file"
        set -u
    fi
done
DEVICE=npu exec bash "$(dirname "${BASH_SOURCE[0]}")/smoke.sh" "$@"
