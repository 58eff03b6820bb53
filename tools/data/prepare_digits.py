#!/usr/bin/env python3
"""Makes the digits of scikit-learn into samples that kd classifies: DIR/train.safetensors and
DIR/valid.safetensors.

    prepare_digits.py --out data/digits          needs scikit-learn (PyPI, or Debian's python3-sklearn)

1,797 pictures of 8 x 8 pixels out of ten classes come with scikit-learn (UCI, Optical Recognition of
Handwritten Digits, test part; CC BY 4.0); nothing is downloaded.  Each file holds `inputs` f32 [n, 64]
from 0 to 1 and `labels` i64 [n].  Every fifth picture of a class is held out.  The same scikit-learn
gives the same bytes.
"""

import argparse
import os
import sys

import numpy as np
from safetensors.numpy import save_file

from publish import finished, publish, rules


def split(labels):
    """True where a picture is held out: the fifth, tenth, ... of its class."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        held[np.flatnonzero(labels == label)[4::5]] = True
    return held


def prepare(out):
    from sklearn.datasets import load_digits

    recipe = {"data": "scikit-learn digits", "rules": rules("prepare_digits.py")}
    state = finished(out, recipe)
    if isinstance(state, str):
        raise ValueError(state)
    if state:
        return
    pixels, labels = load_digits(return_X_y=True)
    inputs, labels = (pixels / 16).astype(np.float32), labels.astype(np.int64)
    held = split(labels)
    with publish(out, recipe) as staging:
        for name, rows in (("train", ~held), ("valid", held)):
            save_file({"inputs": inputs[rows], "labels": labels[rows]},
                      os.path.join(staging, name + ".safetensors"),
                      {"source": "scikit-learn digits"})
            print(f"{out}/{name}.safetensors: {int(rows.sum())} samples", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR")
    try:
        prepare(parser.parse_args().out)
    except ImportError as error:
        print(f"prepare_digits: {error}; pip install scikit-learn", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"prepare_digits: {error}", file=sys.stderr)
        return 3 if isinstance(error, ValueError) else 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
