#!/usr/bin/env python3
"""coverage.py - lines that the tests of a build with --coverage reached, held to a floor.

    tests/coverage/coverage.py BUILD LEAST PATTERN...     e.g.  build-coverage 95 'kernels/*' 'src/device/cuda*.c'

A line counts once, however many times a template is instantiated or a header included.  Exit code 1
when a pattern's files together are below LEAST percent; lines never reached are named.
"""

import collections
import fnmatch
import json
import os
import subprocess
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))


def data_files(build):
    for folder, _, names in os.walk(build):
        yield from (os.path.join(folder, n) for n in names if n.endswith(".gcda"))


def reached(build, patterns):
    """{file: {line: times}} of the files that match."""
    found = collections.defaultdict(lambda: collections.defaultdict(int))
    for path in data_files(build):
        out = subprocess.run(["gcov", "--json-format", "--stdout", os.path.abspath(path)], cwd=ROOT,
                             capture_output=True, check=True).stdout
        for document in out.splitlines():
            for file in json.loads(document)["files"]:
                name = os.path.relpath(os.path.join(ROOT, file["file"]), ROOT)
                if any(fnmatch.fnmatch(name, p) for p in patterns):
                    for line in file["lines"]:
                        found[name][line["line_number"]] += line["count"]
    return found


def ranges(lines):
    """"3-5, 9" of [3, 4, 5, 9]."""
    parts = []
    for n in sorted(lines):
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def main():
    build, least, *patterns = sys.argv[1:]
    found = reached(build, patterns)
    failed = 0
    for pattern in patterns:
        total = hit = 0
        for name in sorted(n for n in found if fnmatch.fnmatch(n, pattern)):
            missed = [n for n, count in found[name].items() if not count]
            total += len(found[name])
            hit += len(found[name]) - len(missed)
            if missed:
                print(f"{name}: never reached: {ranges(missed)}")
        share = 100 * hit / total if total else 0
        print(f"{pattern}: {hit} of {total} lines, {share:.1f} %")
        failed += share < float(least)
    print(f"coverage: {len(patterns) - failed} of {len(patterns)} patterns at {least} % or more")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
