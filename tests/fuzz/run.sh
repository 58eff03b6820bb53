#!/usr/bin/env bash
# run.sh TARGET RUNS [CORPUS] [SECONDS] - runs a target of build-fuzz/ (KD_FUZZ_BUILD), RUNS times or
# until SECONDS are over (0: without end).  CORPUS is where it goes on from and keeps what it finds
# (build-fuzz/corpus/TARGET); the committed inputs are read beside it.  A crash leaves its input in
# build/log/ and ends with libFuzzer's status.
#
#   run.sh TARGET merge   the smallest part of CORPUS with the same coverage becomes the committed one
set -euo pipefail
target=$1 runs=$2
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
build=${KD_FUZZ_BUILD:-$root/build-fuzz}
corpus=${3:-$build/corpus/$target}
seconds=${4:-0}
program=$build/tests/fuzz_$target
case $target in
yaml) longest=2048 ;;
tokenizer) longest=6144 ;;
*) longest=4096 ;;
esac
mkdir -p "$corpus" "$root/build/log"
TMPDIR=$(mktemp -d -p /dev/shm kd-fuzz-run-XXXXXX)
trap 'rm -rf "$TMPDIR"' EXIT
export TMPDIR OMP_NUM_THREADS=1
# A reader gets no more memory at once than a fixed buffer or a few times its input.
options=(-max_len=$longest -timeout=5 -rss_limit_mb=1024 -malloc_limit_mb=24 -use_value_profile=0
    -dict="$here/$target.dict" -artifact_prefix="$root/build/log/$target-" -print_final_stats=1)
export ASAN_OPTIONS=quarantine_size_mb=16:malloc_context_size=8:detect_leaks=1
if [ "$runs" = merge ]; then
    small=$(mktemp -d -p "$TMPDIR")
    "$program" "${options[@]}" -merge=1 "$small" "$here/corpus/$target" "$corpus"
    rm -rf "$here/corpus/$target"
    mkdir -p "$here/corpus/$target"
    # The smallest files that fit 100 files and 180 KB.
    find "$small" -type f -printf '%s %p\n' | sort -n | head -n 100 |
        awk '{ sum += $1; if (sum < 180000) print $2 }' | xargs cp -t "$here/corpus/$target"
    exit
fi
"$program" "${options[@]}" -runs="$runs" -max_total_time="$seconds" "$corpus" "$here/corpus/$target"
