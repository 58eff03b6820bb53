#!/bin/sh
# compile.sh NVCC ARGUMENT... - compiles, and leaves what ptxas says of registers, spills, stack and
# shared memory in OBJECT.ptxas for budget.py; everything else nvcc says goes on to the reader.
object=
for argument; do
    [ "$previous" = -o ] && object=$argument
    previous=$argument
done
[ -n "$object" ] || exec "$@"
"$@" -Xptxas -v 2>"$object.ptxas.new"
status=$?
grep -v -e '^ptxas info' -e '^    [0-9]* bytes stack frame' "$object.ptxas.new" >&2
mv "$object.ptxas.new" "$object.ptxas"
exit $status
