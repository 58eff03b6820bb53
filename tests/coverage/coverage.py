#!/usr/bin/env python3
"""coverage.py - what the runs of a build with KD_COVERAGE reached, held to floors.

    tests/coverage/coverage.py BUILD CLAIM...
        CLAIM: 'lines LEAST PATTERN...' or 'branches LEAST PATTERN...', a floor in percent for the files
        that match together:   build-coverage 'lines 90 src/* kernels/*' 'branches 100 src/train/manifest.c'

A line counts once, however many times a template is instantiated or a header included.  A branch is
one way out of a condition, as gcov has them: each && and ||, each case, both ends of every KD_TRY.  The
ways of an exception are not counted, and a header cannot be held to its own: every object that includes
it has another number of them.  Nothing else is left out: an object that never ran counts as not reached,
and sources that the build has not are named.

Exit code 1 when a claim does not hold.  Of a claim of one pattern what was never reached is named.
"""

import collections
import concurrent.futures
import fnmatch
import glob
import json
import os
import subprocess
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))


def notes(build):
    """Of each object; what was never run has no counts."""
    for folder, _, names in os.walk(build):
        yield from (os.path.join(folder, n) for n in names if n.endswith(".gcno"))


def gcov(path):
    out = subprocess.run(["gcov", "--json-format", "--branch-probabilities", "--stdout",
                          os.path.abspath(path)], cwd=ROOT, capture_output=True, check=True).stdout
    return [json.loads(document) for document in out.splitlines() if document]


class File:
    def __init__(self):
        self.lines = collections.defaultdict(int)  # {number: times}
        self.branches = {}  # {(number, function): [times]}

    def add_line(self, line):
        self.lines[line["line_number"]] += line["count"]

    def add_branches(self, line):
        number = line["line_number"]
        counts = [b["count"] for b in line["branches"] if not b["throw"]]
        key = number, line.get("function_name")
        before = self.branches.get(key, [0] * len(counts))
        assert len(before) == len(counts), f"line {number}: {len(before)} and {len(counts)} branches"
        self.branches[key] = [a + b for a, b in zip(before, counts)]

    def missed_lines(self):
        return [n for n, count in self.lines.items() if not count]

    def missed_branches(self):
        """[(number, "branch 1 of 2")]"""
        found = []
        for (number, _), counts in sorted(self.branches.items(), key=lambda item: item[0][0]):
            for i, count in enumerate(counts):
                if not count:
                    found.append((number, f"branch {i + 1} of {len(counts)}"))
        return found

    def count(self, what):
        """Those reached, and all."""
        if what == "lines":
            return len(self.lines) - len(self.missed_lines()), len(self.lines)
        total = sum(len(counts) for counts in self.branches.values())
        return total - len(self.missed_branches()), total


def matches(name, patterns):
    return any(fnmatch.fnmatch(name, p) for p in patterns)


def reached(build, claims):
    """{name: File} of those that a claim is about."""
    anything = [pattern for claim in claims for pattern in claim[2:]]
    branches = [pattern for claim in claims if claim[0] == "branches" for pattern in claim[2:]]
    found = collections.defaultdict(File)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for documents in pool.map(gcov, notes(build)):
            for file in (f for document in documents for f in document["files"]):
                name = os.path.relpath(os.path.join(ROOT, file["file"]), ROOT)
                for line in file["lines"] if matches(name, anything) else []:
                    found[name].add_line(line)
                for line in file["lines"] if matches(name, branches) else []:
                    found[name].add_branches(line)
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


def name_missed(name, file, what):
    if what == "lines":
        if file.missed_lines():
            print(f"{name}: never reached: {ranges(file.missed_lines())}")
        return
    with open(os.path.join(ROOT, name), encoding="utf-8") as source:
        text = source.read().splitlines()
    for number, which in file.missed_branches():
        print(f"{name}:{number}: {which} never taken: {text[number - 1].strip()}")


def holds(found, what, least, *patterns):
    hit = total = 0
    for name in sorted(n for n in found if matches(n, patterns)):
        if len(patterns) == 1:
            name_missed(name, found[name], what)
        a, b = found[name].count(what)
        hit, total = hit + a, total + b
    share = 100 * hit / total if total else 0
    print(f"figure: {' '.join(patterns)}: {hit} of {total} {what}, {share:.1f} % (floor {least} %)")
    return share >= float(least)


def name_absent(found):
    """Twins of what was built, for another machine, and files of tables."""
    sources = (os.path.relpath(p, ROOT) for p in glob.glob(os.path.join(ROOT, "src/*/*.c")))
    absent = sorted(s for s in sources if s not in found)
    if absent:
        print(f"no code of this build: {', '.join(absent)}")


def main():
    build, *claims = sys.argv[1:]
    claims = [claim.split() for claim in claims]
    found = reached(build, claims)
    if "src/*" in (pattern for claim in claims for pattern in claim[2:]):
        name_absent(found)
    kept = sum([holds(found, *claim) for claim in claims])
    print(f"coverage: {kept} of {len(claims)} floors held")
    return 0 if kept == len(claims) else 1


if __name__ == "__main__":
    sys.exit(main())
