#!/usr/bin/env python3
"""lint.py - the architecture as a test.

    tests/lint/lint.py [--root DIR] [--library build/libkd.a] [CHECK ...]

Each check reads the tree and yields violations as "path:line: what".  The include rules are the
tables of src/README.md.  Python's standard library only; the compilers, nm, clang-format 14 and bash
are called.  A check whose tool is not there is skipped and says so.  Exit code 1 on a violation.
The self test, tests/lint/test_lint.py, plants a violation for every check.
"""

import argparse
import fnmatch
import os
import re
import shutil
import subprocess
import sys

MAX_FILE = 600  # lines
MAX_FUNCTION = 70
CLANG_FORMAT = 14  # another version formats otherwise
C_SUFFIXES = (".c", ".h", ".cu", ".cuh")


class Skipped(Exception):
    """The tool of a check is not on this machine."""


class Tree:
    """The files of a checkout: what git knows and does not ignore, or all where there is no git."""

    def __init__(self, root, library=None):
        self.root = os.path.abspath(root)
        self.library = library
        self._texts = {}
        self.paths = sorted(self._git() or self._walk())

    def _git(self):
        if not os.path.exists(os.path.join(self.root, ".git")) or not shutil.which("git"):
            return None
        listed = run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=self.root).stdout
        return [p for p in listed.split("\0") if os.path.isfile(os.path.join(self.root, p))]

    def _walk(self):
        ignored = [".git", ".git/"]
        if os.path.exists(os.path.join(self.root, ".gitignore")):
            ignored += self.text(".gitignore").split()
        for folder, below, names in os.walk(self.root):
            at = os.path.relpath(folder, self.root) + "/"
            at = "/" if at == "./" else f"/{at}"
            below[:] = [b for b in below if not ignores(ignored, at, b + "/")]
            yield from ((at + n)[1:] for n in names if not ignores(ignored, at, n))

    def text(self, path):
        """The file's text, "" of what is not UTF-8 text."""
        if path not in self._texts:
            with open(os.path.join(self.root, path), "rb") as f:
                data = f.read()
            try:
                self._texts[path] = "" if b"\0" in data else data.decode()
            except UnicodeDecodeError:
                self._texts[path] = ""
        return self._texts[path]

    def lines(self, path):
        return enumerate(self.text(path).split("\n"), 1)

    def files(self, *suffixes, under=("",)):
        return [p for p in self.paths if p.endswith(suffixes) and p.startswith(tuple(under))]

    def read(self, path):
        if path not in self.paths:
            raise SystemExit(f"{path}: not found; lint holds the tree to it")
        return self.text(path)


def ignores(patterns, folder, name):
    """As git reads those patterns that our .gitignore has: "/top/", "folder/", "*.suffix"."""
    return any(fnmatch.fnmatch(folder + name if p[0] == "/" else name, p) for p in patterns)


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def tool(*names):
    for name in names:
        if shutil.which(name):
            return name
    raise Skipped(f"{names[0]} not found")


LITERAL = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.S)


def code(text, strings=False):
    """C without comments, and without the insides of literals unless `strings`; lines stay."""

    def blank(match):
        found = match.group()
        if found[0] == "/":
            return "\n" * found.count("\n") or " "
        return found if strings else found[0] * 2

    return LITERAL.sub(blank, text)


# ---- the tables of src/README.md ------------------------------------------------------------------


def table(tree, heading):
    """Rows of the table under `## heading`, each cell as its list of `words`; the first is one."""
    parts = re.split(r"^## ", tree.read("src/README.md"), flags=re.M)
    for part in parts:
        if part.startswith(heading + "\n"):
            rows = [r.strip().strip("|").split("|") for r in part.split("\n") if r.startswith("|")]
            return [[re.findall(r"`([^`]+)`", cell) for cell in row] for row in rows[2:]]
    raise SystemExit(f"src/README.md: no table under '## {heading}'")


class Rules:
    def __init__(self, tree):
        folders = table(tree, "Folders")
        self.may = {row[0][0]: row[3] for row in folders}
        self.owner = {public: row[0][0] for row in folders for public in row[2]}
        self.places = {row[0][0]: row[1] for row in table(tree, "Elsewhere")}
        self.libraries = {row[0][0]: row[1] for row in table(tree, "Libraries")}


INCLUDE = re.compile(r"^\s*#\s*include\s*([\"<])([^\">]+)[\">]", re.M)


def includes(tree, path):
    """(line, name, quoted) of every #include."""
    text = code(tree.text(path), strings=True)
    for m in INCLUDE.finditer(text):
        yield text.count("\n", 0, m.start(2)) + 1, m.group(2), m.group(1) == '"'


def check_includes(tree):
    """Include edges are those of src/README.md."""
    rules = Rules(tree)
    folders = {p.split("/")[1] for p in tree.files(*C_SUFFIXES, under=["src/"])}
    for folder in sorted(folders ^ set(rules.may)):
        yield f"src/README.md: folder '{folder}' is in the tree or in the table, not in both"
    public = {os.path.basename(p)[:-2] for p in tree.files(".h", under=["include/kd/"])}
    for name in sorted(public ^ set(rules.owner)):
        yield f"src/README.md: 'kd/{name}.h' is in the tree or in the table, not in both"
    yield from cycles(rules.may)
    for path in tree.files(*C_SUFFIXES):
        for line, name, quoted in includes(tree, path):
            wrong = refuse_library(rules, path, name)
            if not wrong and path.startswith("src/"):
                wrong = refuse_room(rules, path, name, quoted)
            elif not wrong:
                wrong = refuse_place(rules, path, name, quoted)
            if wrong:
                yield f"{path}:{line}: {wrong}"


def cycles(may):
    """The table must be an order: whoever is included stands below."""
    left = dict(may)
    while left:
        free = [f for f in left if not any(g in left for g in left[f])]
        if not free:
            yield f"src/README.md: folders include each other in a circle: {', '.join(left)}"
            return
        for folder in free:
            del left[folder]


def refuse_library(rules, path, name):
    known = rules.libraries.get(name)
    if not known or not path.startswith("src/"):
        return None
    if any(fnmatch.fnmatch(path, "src/" + pattern) for pattern in known):
        return None
    return f"<{name}> is known to {', '.join(known)} only"


def refuse_room(rules, path, name, quoted):
    folder = path.split("/")[1]
    seen = rules.may.get(folder, []) + [folder]
    if name.startswith("kd/"):
        owner = rules.owner.get(name[3:-2])
        return None if owner in seen else f"{folder} may not include <{name}>, which is {owner}'s"
    if not quoted:
        return None
    target = name.split("/")[0]
    if "/" not in name or target not in rules.may:
        return f'"{name}" is not written relative to src/'
    if target == folder:
        return None
    if name != f"{target}/{target}.h":
        return f'"{name}" is private to {target}; its door is {target}/{target}.h'
    return None if target in seen else f"{folder} may not include {target}"


def refuse_place(rules, path, name, quoted):
    inside = [p for p in rules.places if path.startswith(p + "/")]
    if not inside:
        return "src/README.md has no row for the place of this file"
    place = max(inside, key=len)
    if not quoted and not name.startswith("kd/"):
        return None
    if quoted and "/" not in name:
        return None  # a header beside it
    if any(fnmatch.fnmatch(name, pattern) for pattern in rules.places[place]):
        return None
    return f"{place} may not include {name}"


# ---- lists ----------------------------------------------------------------------------------------


def rows_of(tree, path, macro):
    text = code(tree.read(path))
    return re.findall(rf"^{macro}\(\s*(\w+)", text, flags=re.M)


def symbols(tree):
    """(archive member, type, name) of what libkd.a defines for others."""
    if not tree.library or not os.path.exists(tree.library):
        raise SystemExit("lint: --library names no built libkd.a")
    listed = run([tool("nm"), "-A", "-g", "--defined-only", tree.library])
    if listed.returncode:
        raise SystemExit(f"lint: nm: {listed.stderr}")
    for line in listed.stdout.splitlines():
        m = re.match(r".*?:([^:]+):\s*\S+ (\w) (\S+)$", line)
        if m:
            yield m.groups()


def check_ops(tree):
    """Every row of op_list.h has a CPU implementation and a test that runs it."""
    defined = {name for _, kind, name in symbols(tree) if kind == "T"}
    tests = "\n".join(code(tree.text(p)) for p in tree.files(".c", under=["tests/"]))
    ops = rows_of(tree, "src/ops/op_list.h", "KD_OP")
    if not ops:
        yield "src/ops/op_list.h: no rows"
    for op in ops:
        if f"kd_{op}_cpu" not in defined:
            yield f"src/ops/op_list.h: {op} has no kd_{op}_cpu in the library"
        if not re.search(rf"\bKD_RUN\([^,;]*,\s*{op}\b|\bKD_OP_{op}\b", tests):
            yield f"src/ops/op_list.h: no test runs {op}"


def check_rows(tree):
    """Every row of row_list.h has its header, a statement in double and a test."""
    rows = rows_of(tree, "src/ops/row_list.h", "KD_ROW")
    if not rows:
        yield "src/ops/row_list.h: no rows"
    for row in rows:
        header = f"src/ops/rows/{row}.h"
        if header not in tree.paths:
            yield f"src/ops/row_list.h: {row} has no {header}"
        elif f"kd_row_{row}_gradient" not in code(tree.text(header)):
            yield f"{header}: no kd_row_{row}_gradient"
        for folder, what in (("tests/oracle/", "statement in double"), ("tests/ops/", "test")):
            texts = (code(tree.text(p)) for p in tree.files(".c", under=[folder]))
            if not any(re.search(rf"\bKD_ROW_{row}\b", t) for t in texts):
                yield f"src/ops/row_list.h: {row} has no {what} below {folder}"


def check_losses(tree):
    """Every row of loss_list.h has its file and golden values."""
    rows = rows_of(tree, "src/loss/loss_list.h", "KD_FEATURE")
    if not rows:
        yield "src/loss/loss_list.h: no rows"
    for row in rows:
        path = f"src/loss/{row}.c"
        if path not in tree.paths:
            yield f"src/loss/loss_list.h: {row} has no {path}"
        elif f"kd_feature_{row} = {{" not in code(tree.text(path)):
            yield f"{path}: no kd_feature_{row}"
        golden = f"tests/golden/losses/{row}."
        if not any(p.startswith(golden) for p in tree.paths):
            yield f"src/loss/loss_list.h: {row} has no {golden}*.safetensors"


def check_symbols(tree):
    """What libkd.a exports starts with kd_."""
    for member, _, name in symbols(tree):
        # nvcc gives what is in an unnamed namespace external names that no other file can have.
        if not name.startswith("kd_") and "_GLOBAL__N_" not in name:
            yield f"{member}: exports '{name}'; make it static or name it kd_{name}"


def check_headers(tree):
    """Every public header compiles alone as C11 and as C++17."""
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-Iinclude", "-"]
    c = [tool("cc", "gcc", "clang"), "-xc", "-std=c11"] + strict
    cxx = [tool("c++", "g++", "clang++"), "-xc++", "-std=c++17"] + strict
    headers = tree.files(".h", under=["include/"])
    if not headers:
        yield "include/kd: no headers"
    for path in headers:
        name = path[len("include/") :]
        for language, command in (("C11", c), ("C++17", cxx)):
            built = run(command, cwd=tree.root, input=f"#include <{name}>\nint kd_alone;\n")
            if built.returncode:
                first = (re.findall(r"error: .*", built.stderr) or [built.stderr])[0]
                yield f"{path}: does not compile alone as {language}: {first}"


# ---- words ----------------------------------------------------------------------------------------


def find(tree, paths, pattern, what, stripped=False):
    for path in paths:
        text = code(tree.text(path)) if stripped else tree.text(path)
        for line, content in enumerate(text.split("\n"), 1):
            m = re.search(pattern, content)
            if m:
                yield f"{path}:{line}: {what.format(m.group().strip())}"


def check_exits(tree):
    """The library never ends the process."""
    paths = tree.files(*C_SUFFIXES, under=["src/", "include/", "kernels/"])
    ends = r"(?<!->)\b_?_?(?:exit|Exit|quick_exit|abort)\s*\("
    return find(tree, paths, ends, "'{}' below tools/; return a kd_status", stripped=True)


def check_promises(tree):
    """Nothing is put off in the code."""
    words = "|".join(["TO" + "DO", "FIX" + "ME"])
    return find(tree, tree.paths, rf"\b(?:{words})\b", "'{}': do it, or open an issue")


def check_paths(tree):
    """No path of somebody's machine.  The file system of an image in docker/ is its own."""
    paths = [p for p in tree.paths if not p.startswith("docker/")]
    roots = "work|root|home|Users|tmp/(?!kd-)[a-z]+/"
    return find(tree, paths, rf"(?<![\w.$}}>/])/(?:{roots})(?=[/\w]|$)", "path of one machine: '{}'")


def check_cuda(tree):
    """Kernels declare shared memory and launch through the macros that cudasim knows."""
    paths = tree.files(".cu", ".cuh", under=["kernels/"])
    paths = [p for p in paths if p != "kernels/common/launch.cuh"]
    return find(tree, paths, r"\b__shared__\b|<<<", "bare '{}'", stripped=True)


# ---- form -----------------------------------------------------------------------------------------


def check_sizes(tree):
    """Files under 600 lines, functions under 70."""
    for path in tree.files(*C_SUFFIXES, ".py"):
        count = tree.text(path).count("\n")
        if count >= MAX_FILE:
            yield f"{path}: {count} lines; put up a wall"
    for path in tree.files(*C_SUFFIXES):
        start = 0
        for number, line in tree.lines(path):
            if line == "{":  # clang-format puts only the brace of a function here
                start = number
            elif line.startswith("}") and start:
                if number - start + 1 >= MAX_FUNCTION:
                    yield f"{path}:{start}: a function of {number - start + 1} lines"
                start = 0


def check_format(tree):
    """clang-format has nothing to change."""
    name = tool(f"clang-format-{CLANG_FORMAT}", "clang-format")
    version = run([name, "--version"]).stdout.strip()
    if not re.search(rf"version {CLANG_FORMAT}\.", version):
        raise Skipped(f"clang-format {CLANG_FORMAT} not found, only {version}")
    found = run([name, "--dry-run", "-Werror", *tree.files(*C_SUFFIXES)], cwd=tree.root)
    seen = re.findall(r"^(\S+?):(\d+):\d+: (?:error|warning):", found.stderr, flags=re.M)
    if found.returncode and not seen:
        yield f"clang-format: {found.stderr.strip()}"
    for path, line in {path: line for path, line in reversed(seen)}.items():
        yield f"{path}:{line}: not as clang-format -i leaves it"


def check_scripts(tree):
    """Shell scripts parse (and please shellcheck, where it is); Python parses."""
    shell = [p for p in tree.paths if re.match(r"#!.*\b(?:ba|da)?sh\b", tree.text(p))]
    for path in sorted({*shell, *tree.files(".sh")}):
        parsed = run(["bash", "-n", path], cwd=tree.root)
        if parsed.returncode:
            yield f"{path}: {parsed.stderr.strip()}"
        elif shutil.which("shellcheck"):
            found = run(["shellcheck", "-x", "-S", "warning", "-f", "gcc", path], cwd=tree.root)
            yield from found.stdout.splitlines()
    for path in tree.files(".py"):
        try:
            compile(tree.text(path), path, "exec")
        except SyntaxError as error:
            yield f"{path}:{error.lineno}: {error.msg}"


CHECKS = {name[len("check_") :]: f for name, f in globals().items() if name.startswith("check_")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    here = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument("--root", default=os.path.join(here, "..", ".."))
    parser.add_argument("--library", help="libkd.a, for the checks of symbols")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=", ".join(CHECKS))
    options = parser.parse_args()
    if set(options.checks) - set(CHECKS):
        parser.error(f"no such check; there are {', '.join(CHECKS)}")
    tree = Tree(options.root, options.library)
    failed = skipped = 0
    names = options.checks or list(CHECKS)
    for name in names:
        try:
            violations = list(CHECKS[name](tree))
        except Skipped as reason:
            print(f"lint {name}: skipped: {reason}")
            skipped += 1
            continue
        failed += bool(violations)
        for violation in violations:
            print(f"lint {name}: {violation}")
    passed = len(names) - failed - skipped
    print(f"lint: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
