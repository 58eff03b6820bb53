#!/usr/bin/env python3
"""Writes src/format/unicode_table.c: which characters the pre-tokenisers call letters and numbers.

    python tools/unicode_table.py > src/format/unicode_table.c      (PyPI tokenizers)

Two witnesses are asked about every code point: PyPI tokenizers (its regular expressions and its
Digits pre-tokeniser, each with a Unicode version of its own) and Python's unicodedata.  Where they
disagree, which is where a script is younger than one of them, the class is DISPUTED and the text is
refused: which ids it has depends on the version of the library that is asked.

UNSTABLE marks what NFC may change or move: characters that are not their own NFC, that combine with
or reorder before others, and unassigned ones, which may turn out to.
"""
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers
import tokenizers

POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
BLOCK = 4096
OTHER, LETTER, NUMBER, SPACE, DISPUTED, UNSTABLE = 0, 1, 2, 3, 4, 8
SYMBOL_BLOCKS = range(0x1F000, 0x1FC00)  # pictographs: no combining marks will be assigned there


def blocks():
    for i in range(0, len(POINTS), BLOCK):
        yield POINTS[i:i + BLOCK]


def matched(pattern):
    split, found = pre_tokenizers.Split(Regex(pattern), "removed"), set()
    for block in blocks():
        kept = set("".join(text for text, _ in split.pre_tokenize_str("".join(map(chr, block)))))
        found.update(c for c in block if chr(c) not in kept)
    return found


def digits():
    split, found = pre_tokenizers.Digits(individual_digits=True), set()
    for block in blocks():
        text = "".join("a%sa" % chr(c) for c in block)
        found.update(ord(t) for t, _ in split.pre_tokenize_str(text) if len(t) == 1 and t != "a")
    return found


def unstable():
    nfc, found = normalizers.NFC(), set()
    for c in POINTS:
        char, parts = chr(c), unicodedata.decomposition(chr(c)).split()
        unassigned = unicodedata.category(char) == "Cn" and c not in SYMBOL_BLOCKS
        if unassigned or unicodedata.combining(char) or \
                unicodedata.normalize("NFC", char) != char or nfc.normalize_str(char) != char:
            found.add(c)
        elif len(parts) == 2 and not parts[0].startswith("<"):
            found.add(int(parts[1], 16))  # the second half of a composition
    found.update(range(0x1161, 0x1176))  # Hangul vowels and finals compose by arithmetic
    found.update(range(0x11A8, 0x11C3))
    return found


def classes():
    letters, numbers, spaces = matched(r"\p{L}"), matched(r"\p{N}"), matched(r"\s")
    single, moving = digits(), unstable()
    for c in POINTS:
        kind = LETTER if c in letters else NUMBER if c in numbers else SPACE if c in spaces else OTHER
        category = unicodedata.category(chr(c))[0]
        agreed = (category == "L") == (kind == LETTER) and \
            (category == "N") == (kind == NUMBER) == (c in single)
        yield c, (kind if agreed else DISPUTED) | (UNSTABLE if c in moving else 0)


def main():
    runs, last = [], None
    for c, kind in classes():
        if kind != last:
            runs.append("0x%06x%02x" % (c, kind))
        last = kind
    print("/* Made by tools/unicode_table.py with tokenizers %s and Unicode %s: do not edit. */"
          % (tokenizers.__version__, unicodedata.unidata_version))
    print('#include "format/bpe.h"\n')
    print("/* First code point of a run << 8 | kd_char_class of the run. */")
    print("/* clang-format off */")
    print("const uint32_t kd_unicode_runs[] = {")
    for i in range(0, len(runs), 8):
        print("    " + " ".join(run + "," for run in runs[i:i + 8]))
    print("};")
    print("/* clang-format on */")
    print("const int kd_unicode_run_count = KD_COUNT(kd_unicode_runs);")


if __name__ == "__main__":
    main()
