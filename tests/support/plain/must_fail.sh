#!/bin/sh
# must_fail.sh TEXT PROGRAM [ARGUMENT ...] - passes where the program fails and says TEXT.
text=$1
shift
if said=$("$@" 2>&1); then
    echo "$said"
    echo "must_fail: $* passed"
    exit 1
fi
case $said in
*"$text"*) ;;
*)
    echo "$said"
    echo "must_fail: $* failed, but did not say '$text'"
    exit 1
    ;;
esac
