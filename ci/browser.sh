#!/usr/bin/env bash
# Installs Debian's chromium where there is none: a test looks at the page of show-data in it.
# Usage: bash ci/browser.sh
# Needs: root, apt-get and its package index. Prints: one line; exit code 0 when there is a browser, 1 when not.
set -euo pipefail
if command -v chromium >/dev/null; then
    echo "browser: chromium is there"
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "browser: none, and only root with apt-get can install chromium here; going on without"
    exit 1
fi
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if { timeout 300 apt-get update && timeout 600 apt-get install -y --no-install-recommends chromium; } >"$log" 2>&1 &&
    command -v chromium >/dev/null; then
    echo "browser: chromium installed"
else
    echo "browser: chromium could not be installed ($(tail -n 1 "$log")); going on without"
    exit 1
fi
