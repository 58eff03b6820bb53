#!/usr/bin/env python3
"""test_lint.py - no check of lint.py is unable to fail.

A small tree that every check accepts; then, one at a time, a planted violation that exactly one check
must report, at the right place.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lint  # noqa: E402

README = """
## Folders

| folder | what | public headers `kd/` | may include |
|---|---|---|---|
| `base` | floor | `status` | |
| `ops` | ops | | `base` |
| `loss` | losses | `loss` | `base` `ops` |

## Elsewhere

| place | may include |
|---|---|
| `include/kd` | `kd/*.h` |
| `kernels` | `common/*` `ops/ops.h` |
| `tools/kd` | `kd/*.h` |
| `tests` | `*` |

## Libraries

| header | known to |
|---|---|
| `math.h` | `base/*` |
"""

GOOD = {
    "src/README.md": README,
    ".clang-format": "BasedOnStyle: LLVM\nIndentWidth: 4\n",
    "include/kd/status.h": "#include <stddef.h>\nint kd_fail(size_t size);\n",
    "include/kd/loss.h": "#include <kd/status.h>\nint kd_loss(void);\n",
    "src/base/base.h": "#include <kd/status.h>\n",
    "src/base/base.c": '#include "base/base.h"\n#include <math.h>\n'
    "int kd_fail(size_t n) { return (int)n; }\n",
    "src/ops/ops.h": '#include "base/base.h"\n',
    "src/ops/op_list.h": "KD_OP(turn, OUT(y) IN(x))\nKD_OP(copy, OUT(y) IN(x))\n",
    "src/ops/row_list.h": "KD_ROW(kl, true)\n",
    "src/loss/loss_list.h": "KD_FEATURE(hint)\n",
    "src/loss/hint.c": "const int kd_feature_hint = {0};\n",
    "tests/golden/losses/hint.plain.safetensors": "",
    "src/ops/rows/kl.h": "static inline float kd_row_kl_gradient(void) { return 0; }\n",
    "src/ops/turn.c": "/* never exit() here */\nint kd_turn_cpu(void) { return 0; }\n"
    "int kd_copy_cpu(void) { return 0; }\n",
    "src/loss/loss.h": '#include "ops/ops.h"\n#include <kd/loss.h>\n',
    "src/loss/loss.c": '#include "loss/loss.h"\nint kd_loss(void) { return 0; }\n',
    "kernels/common/launch.cuh": "#define KD_SHARED __shared__\n",
    "kernels/ops/turn.cu": '#include "common/launch.cuh"\n#include "ops/ops.h"\n'
    "void kd_turn_cuda(void) { KD_SHARED float x; }\n",
    "tests/oracle/rows.c": "int k = KD_ROW_kl;\n",
    "tests/ops/test_turn.c": '#include "ops/ops.h"\nint k = KD_ROW_kl;\n'
    "void t(void) { KD_RUN(&b->exec, turn, .y = &y); }\nint c = KD_OP_copy;\n",
    "tools/kd/main.c": '#include "cmd.h"\n#include <kd/loss.h>\n#include <stdlib.h>\n'
    "int main(void) { exit(kd_loss()); }\n",
    "tools/kd/cmd.h": "#include <stdio.h>\n",
    "tools/test": "#!/bin/sh\necho good\n",
    "tools/plot.py": "print('good')\n",
}

LATER = "TO" + "DO"
HOME = "/ho" + "me/ada/models"

# check, file, text to replace ("" appends), text to plant, words of the report
PLANTED = [
    ("includes", "src/base/base.c", "", '#include "ops/ops.h"\n', "base may not include ops"),
    ("includes", "src/loss/loss.c", "", '#include "ops/rows/kl.h"\n', "private to ops"),
    ("includes", "src/loss/loss.c", "", '#include "loss.h"\n', "relative to src/"),
    ("includes", "src/base/base.c", "", "#include <kd/loss.h>\n", "which is loss's"),
    ("includes", "src/ops/turn.c", "", "#include <math.h>\n", "known to base/* only"),
    ("includes", "src/odd/odd.c", "", "int kd_odd;\n", "folder 'odd'"),
    ("includes", "include/kd/odd.h", "", "int kd_odd(void);\n", "'kd/odd.h'"),
    ("includes", "src/README.md", "status` | |", "status` | `loss` |", "in a circle: base"),
    ("includes", "kernels/ops/turn.cu", "", '#include "loss/loss.h"\n', "kernels may not include"),
    ("includes", "tools/kd/main.c", "", '#include "loss/loss.h"\n', "tools/kd may not include"),
    ("includes", "include/kd/loss.h", "", '#include "base/base.h"\n', "include/kd may not"),
    ("includes", "odd/odd.c", "", '#include "loss/loss.h"\n', "no row for the place"),
    ("ops", "src/ops/op_list.h", "", "KD_OP(flip, OUT(y))\n", "flip has no kd_flip_cpu"),
    ("ops", "tests/ops/test_turn.c", "exec, turn,", "exec, burn,", "no test runs turn"),
    ("ops", "tests/ops/test_turn.c", "int c = KD_OP_copy;", "/* copy */", "no test runs copy"),
    ("ops", "src/ops/op_list.h", "KD_OP(", "OP(", "no rows"),
    ("rows", "src/ops/row_list.h", "", "KD_ROW(jsd, true)\n", "no src/ops/rows/jsd.h"),
    ("rows", "src/ops/rows/kl.h", "kd_row_kl_gradient", "kd_row_kl", "no kd_row_kl_gradient"),
    ("rows", "tests/oracle/rows.c", "KD_ROW_kl", "0", "no statement in double"),
    ("rows", "tests/ops/test_turn.c", "KD_ROW_kl", "0 /* KD_ROW_kl */", "no test below"),
    ("rows", "src/ops/row_list.h", "KD_ROW(", "ROW(", "no rows"),
    ("losses", "src/loss/loss_list.h", "", "KD_FEATURE(at)\n", "at has no src/loss/at.c"),
    ("losses", "src/loss/loss_list.h", "", "KD_FEATURE(at)\n", "no tests/golden/losses/at.*"),
    ("losses", "src/loss/hint.c", "kd_feature_hint", "kd_hint", "no kd_feature_hint"),
    ("losses", "src/loss/loss_list.h", "KD_FEATURE(", "FEATURE(", "no rows"),
    ("symbols", "src/loss/loss.c", "", "int helper(void) { return 0; }\n", "exports 'helper'"),
    ("symbols", "src/loss/loss.c", "", "int counter = 1;\n", "exports 'counter'"),
    ("headers", "include/kd/status.h", "#include <stddef.h>\n", "", "does not compile alone as C11"),
    ("headers", "include/kd/status.h", "size_t size", "size_t class", "compile alone as C++17"),
    ("exits", "src/loss/loss.c", "return 0;", "abort();", "'abort('"),
    ("exits", "src/loss/loss.c", "return 0;", "_exit(1);", "'_exit('"),
    ("promises", "src/ops/turn.c", "never", LATER + ": never", f"turn.c:1: '{LATER}'"),
    ("paths", "tools/test", "good", HOME, "test:2: path of one machine"),
    ("cuda", "kernels/ops/turn.cu", "KD_SHARED", "__shared__", "bare '__shared__'"),
    ("cuda", "kernels/ops/turn.cu", "KD_SHARED float x", "f<<<1, 1>>>()", "bare '<<<'"),
    ("sizes", "src/loss/loss.c", "", "\n" * lint.MAX_FILE, "602 lines"),
    ("sizes", "src/loss/loss.c", "", "\nint f(void)\n{\n" + "    ;\n" * 68 + "}\n", "loss.c:5"),
    ("format", "src/loss/loss.c", "{ return", "{return", "loss.c:2: not as clang-format"),
    ("scripts", "tools/test", "echo", "if", "tools/test: "),
    ("scripts", "tools/plot.py", "print(", "print((", "tools/plot.py:1"),
]


class Lint(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp(prefix="kd-lint-")
        self.addCleanup(shutil.rmtree, self.root)
        for path, text in GOOD.items():
            self.write(path, text)

    def write(self, path, text):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)

    def build(self):
        """A libkd.a of the tree, outside it."""
        folder = tempfile.mkdtemp(prefix="kd-lint-")
        self.addCleanup(shutil.rmtree, folder)
        sources = lint.Tree(self.root).files(".c", under=["src/"])
        flags = ["-I" + os.path.join(self.root, f) for f in ("include", "src")]
        for number, source in enumerate(sources):
            command = ["cc", *flags, "-w", "-c", os.path.join(self.root, source)]
            subprocess.run([*command, "-o", f"{folder}/{number}.o"], check=True)
        library = os.path.join(folder, "libkd.a")
        objects = [f"{folder}/{number}.o" for number in range(len(sources))]
        subprocess.run(["ar", "rc", library, *objects], check=True)
        return library

    def report(self, check, library=None):
        try:
            return list(lint.CHECKS[check](lint.Tree(self.root, library)))
        except lint.Skipped as reason:
            self.skipTest(str(reason))

    def test_a_good_tree_passes(self):
        library = self.build()
        for check in lint.CHECKS:
            with self.subTest(check):
                self.assertEqual(self.report(check, library), [])

    def test_every_check_can_fail(self):
        self.assertEqual({row[0] for row in PLANTED}, set(lint.CHECKS))
        for check, path, old, new, words in PLANTED:
            with self.subTest(check=check, planted=new[:40]):
                good = GOOD.get(path, "")
                self.assertIn(old, good)
                self.write(path, good.replace(old, new) if old else good + new)
                library = self.build() if check in ("ops", "symbols") else None
                found = self.report(check, library)
                if path in GOOD:
                    self.write(path, good)
                else:
                    os.remove(os.path.join(self.root, path))
                self.assertTrue(any(words in line for line in found), f"{words!r} not in {found}")
                self.assertLessEqual(len(found), 4, found)

    def test_a_tree_without_git_is_read_as_git_reads_it(self):
        self.write(".gitignore", "build*/\n/out/\n*.pyc\n")
        for path in ("build-x/a.c", "src/build/a.c", "out/a.c", "src/a.pyc", ".git/a.c"):
            self.write(path, LATER)
        kept = lint.Tree(self.root).paths
        self.write("src/out/a.c", LATER)
        self.assertEqual(kept, sorted([*GOOD, ".gitignore"]))
        self.assertIn("src/out/a.c", lint.Tree(self.root).paths)

    def test_what_is_missing_is_no_pass(self):
        with self.assertRaises(SystemExit):
            self.report("symbols", "no/such/libkd.a")
        os.remove(os.path.join(self.root, "src/README.md"))
        with self.assertRaises(SystemExit):
            self.report("includes")

    def test_the_command_says_so(self):
        """Exit code and closing line, with and without a violation."""
        command = [sys.executable, lint.__file__, "--root", self.root, "exits", "promises"]
        good = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual((good.returncode, good.stdout), (0, "lint: 2 passed, 0 failed, 0 skipped\n"))
        self.write("src/loss/loss.c", "void kd_loss(void) { abort(); }\n")
        bad = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(bad.returncode, 1)
        self.assertTrue(bad.stdout.endswith("lint: 1 passed, 1 failed, 0 skipped\n"), bad.stdout)


if __name__ == "__main__":
    unittest.main()
