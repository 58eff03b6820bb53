#!/usr/bin/env python3
"""Values and gradients of feature and relation losses, from PyTorch in float64.

    tests/golden/make_losses.py [LOSS ...]        writes losses/<loss>.<case>.safetensors

The formulas are in losses/<group>.py, each written from its paper and differentiated by PyTorch, not by
hand.  A file is what `kd loss` reads; it has the results under the names that `kd loss` writes, and in
its metadata `options`, YAML of the loss's own, and `tolerance`, which the largest number of a result
is multiplied with: more than 1e-5 where f32 cannot do better, which the case then says why.  A formula may
be a pair with the names that have a gradient, and then gives what of its state is renewed beside the
value: `after.<name>` in the file.  The option `projector` is no option of the loss: YAML of its own in the metadata.
"""

import importlib.util
import pathlib
import sys

import safetensors.torch
import torch

HERE = pathlib.Path(__file__).resolve().parent / "losses"
STUDENTS = ("student", "student_q", "student_k")
GROUPS = sorted(p.stem for p in HERE.glob("*.py"))


def load(group):
    spec = importlib.util.spec_from_file_location(group, HERE / f"{group}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


def yaml(options):
    return "".join(f"{k}: {str(v).lower()}\n" for k, v in options.items())


def make(loss, case, options, inputs, formula, tolerance=1e-5):
    """`formula` gives a value per unit; `weight` among the inputs is the harness's own."""
    # What is stored is f32: the formula sees the rounded values.
    stored = {n: t if t.dtype == torch.int32 else t.to(torch.float32) for n, t in inputs.items()}
    wide = {n: t if t.dtype == torch.int32 else t.double() for n, t in stored.items()}
    weight = wide.pop("weight", None)
    formula, trained = formula if isinstance(formula, tuple) else (formula, STUDENTS)
    leaves = [n for n in wide if n in trained]
    for name in leaves:
        wide[name].requires_grad_()
    value = formula(**wide, **options)
    value, state = value if isinstance(value, tuple) else (value, {})
    if weight is not None:
        value = value * weight
    value.sum().backward()
    stored["loss"] = value.detach().to(torch.float32)
    for name in leaves:
        gradient = wide[name].grad
        stored[f"d_{name}"] = (torch.zeros_like(wide[name]) if gradient is None else gradient).to(
            torch.float32
        )
    for name, renewed in state.items():
        stored[f"after.{name}"] = renewed.detach().to(torch.float32)
    own = {k: v for k, v in options.items() if k != "projector"}
    metadata = {"options": yaml(own), "tolerance": str(tolerance)}
    if "projector" in options:
        metadata["projector"] = yaml(options["projector"])
    stored = {n: t.contiguous() for n, t in stored.items()}
    path = HERE / f"{loss}.{case}.safetensors"
    safetensors.torch.save_file(stored, path, metadata)
    path.chmod(0o644)


def main():
    wanted = set(sys.argv[1:])
    for group in GROUPS:
        for row in load(group):
            if not wanted or row[0] in wanted:
                make(*row)


if __name__ == "__main__":
    main()
