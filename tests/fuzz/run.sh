#!/usr/bin/env bash
# run.sh TARGET RUNS [SECONDS [CORPUS]] - runs a target of build-fuzz/ (KD_FUZZ_BUILD) RUNS times (-1:
# without end) or until SECONDS are over (0: never).  CORPUS is where it goes on from and keeps what it
# finds (build-fuzz/corpus/TARGET; -: nothing is kept); the committed inputs are read beside it.  A crash
# leaves its input in build/log/ and ends with libFuzzer's status.
#
# run.sh TARGET merge - what the committed corpus lacks of CORPUS's coverage is added to it, up to 100
# files and 180 KB.
set -euo pipefail
target=$1 runs=$2 seconds=${3:-0}
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
build=${KD_FUZZ_BUILD:-$root/build-fuzz}
corpus=${4:-$build/corpus/$target}
committed=$here/corpus/$target
program=$build/tests/fuzz_$target
case $target in
yaml) longest=2048 ;;
tokenizer) longest=6144 ;;
*) longest=4096 ;;
esac
TMPDIR=$(mktemp -d -p /dev/shm kd-fuzz-run-XXXXXX)
trap 'rm -rf "$TMPDIR"' EXIT
export TMPDIR OMP_NUM_THREADS=1
[ "$corpus" != - ] || corpus=$TMPDIR/corpus
mkdir -p "$corpus" "$root/build/log"
# A reader gets no more memory at once than a fixed buffer or a few times its input.
options=(-max_len="$longest" -timeout=5 -rss_limit_mb=1024 -malloc_limit_mb=24 -print_final_stats=1
    -dict="$here/$target.dict" -artifact_prefix="$root/build/log/$target-")
export ASAN_OPTIONS=quarantine_size_mb=16:malloc_context_size=8:detect_leaks=1
if [ "$runs" != merge ]; then
    "$program" "${options[@]}" -runs="$runs" -max_total_time="$seconds" "$corpus" "$committed"
    exit
fi
mkdir "$TMPDIR/small"
"$program" "${options[@]}" -set_cover_merge=1 "$TMPDIR/small" "$committed" "$corpus"
rm -rf "$committed"
mkdir -p "$committed"
# The larger come further than the first check.
find "$TMPDIR/small" -type f -printf '%s %p\n' | sort -rn |
    awk 'n < 100 && sum + $1 < 180000 { n++; sum += $1; print $2 }' | xargs cp -t "$committed"
