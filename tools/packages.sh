#!/usr/bin/env bash
# packages.sh SET... - installs Debian's packages of the sets: build, test, full, quickstart (lib.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/lib.sh
wanted=()
for set in "$@"; do
    declare -n packages=${set}_packages
    wanted+=("${packages[@]}")
done
need_packages "${wanted[@]}"
