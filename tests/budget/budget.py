#!/usr/bin/env python3
"""budget.py - what every kernel may take of a multiprocessor, held against what ptxas gave it.

    tests/budget/budget.py BUILD            exit code 1 when a kernel is over its budget or has none
    tests/budget/budget.py BUILD --update   writes kernels/budget.txt anew from what was measured

A build with nvcc leaves OBJECT.ptxas beside each kernel object (compile.sh).  A row of the budget is
one kernel over all its instantiations and one architecture: the most registers, bytes of spills
(stores and loads), bytes of stack frame and bytes of static shared memory.  Dynamic shared memory is
the launcher's choice and not seen here.
"""

import argparse
import os
import re
import subprocess
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
BUDGET = os.path.join(ROOT, "kernels", "budget.txt")
COLUMNS = ("registers", "spills", "stack", "shared")
HEAD = """\
# What the kernels may take, at most over all instantiations: registers of a thread, bytes of spills,
# bytes of stack, bytes of static shared memory.  tests/budget/budget.py holds the build to it;
# --update writes it.  A row that grows is a decision: say why in the commit.
"""

COMPILING = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def demangled(names):
    names = list(names)
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, out.stdout.split("\n")))


def kernel_of(signature):
    """"add_kernel" of "void (anonymous namespace)::add_kernel<float, 4>(AddParams<float>)"."""
    plain = re.sub(r"_GLOBAL__N__\w+::|\(anonymous namespace\)::", "", signature)
    depth, kept = 0, []
    for c in plain.split("(")[0]:
        depth += c == "<"
        if not depth:
            kept.append(c)
        depth -= c == ">"
    return "".join(kept).split()[-1].split("::")[-1]


def measured(build):
    """{(file, kernel, architecture): [most of each column]}"""
    rows, files = {}, 0
    for folder, _, names in os.walk(build):
        for name in names:
            if not name.endswith(".cu.o.ptxas"):
                continue
            files += 1
            with open(os.path.join(folder, name), encoding="utf-8") as f:
                for entry, arch, values in entries(f):
                    rows.setdefault((name[: -len(".cu.o.ptxas")], entry, arch), []).append(values)
    if not files:
        print(f"budget: {build} holds no *.ptxas: not a build with nvcc: skipped")
        sys.exit(77)
    names = demangled({entry for _, entry, _ in rows})
    most = {}
    for (source, entry, arch), values in rows.items():
        key = (source, kernel_of(names[entry]), arch)
        most[key] = [max(column) for column in zip(*values, most.get(key, [0] * len(COLUMNS)))]
    return most


def entries(lines):
    entry = arch = None
    values = [0] * len(COLUMNS)
    for line in lines:
        if m := COMPILING.search(line):
            entry, arch = m.groups()
        elif (m := FRAME.search(line)) and entry:
            values[1], values[2] = int(m[2]) + int(m[3]), int(m[1])
        elif (m := USED.search(line)) and entry:
            values[0] = int(m[1])
            values[3] = int(s[1]) if (s := SHARED.search(line)) else 0
            yield entry, arch, values
            entry, values = None, [0] * len(COLUMNS)


def read_budget():
    rows = {}
    with open(BUDGET, encoding="utf-8") as f:
        for line in f:
            if line.strip() and line[0] != "#" and line.split()[0] != "file":
                source, kernel, arch, *values = line.split()
                rows[source, kernel, arch] = [int(v) for v in values]
    return rows


def write_budget(rows):
    titles = ("file", "kernel", "for", *COLUMNS)
    lines = [titles] + [(*key, *map(str, rows[key])) for key in sorted(rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    with open(BUDGET, "w", encoding="utf-8") as f:
        f.write(HEAD)
        for cells in lines:
            text = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))]
            f.write("  ".join(text).rstrip() + "\n")


def violations(found, budget):
    for key in sorted(found):
        name = " ".join(key)
        if key not in budget:
            yield f"{name}: no budget in kernels/budget.txt"
            continue
        for column, most, value in zip(COLUMNS, budget[key], found[key]):
            if value > most:
                yield f"{name}: {value} {column}, budget {most}"
    for key in sorted(set(budget) - set(found)):
        yield f"{' '.join(key)}: in kernels/budget.txt, not in the build"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build")
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    found = measured(options.build)
    if options.update:
        write_budget(found)
        return 0
    failed = list(violations(found, read_budget()))
    for text in failed:
        print("budget:", text)
    print(f"budget: {len(found)} kernels, {len(failed)} over or missing")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
