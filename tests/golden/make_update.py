#!/usr/bin/env python3
"""Writes update.h: parameters after each step of torch.optim.AdamW and torch.optim.SGD.

    python3 tests/golden/make_update.py > tests/golden/update.h

Gradients are clipped by torch.nn.utils.clip_grad_norm_ first.  Needs torch.
"""
import torch

N, STEPS, MAX_NORM = 19, 3, 1.5
ADAMW = dict(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
CASES = [
    ("adamw", lambda p: torch.optim.AdamW(p, lr=1e-2, **ADAMW)),
    ("sgd_plain", lambda p: torch.optim.SGD(p, lr=0.1)),
    ("sgd_momentum", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05)),
    ("sgd_nesterov", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=True)),
]


def rows(tensor):
    """C initialisers of a matrix, nine digits to a float, which name it exactly."""
    def number(x):
        text = f"{x:.9g}"
        return text + ("" if "." in text or "e" in text else ".0") + "f"
    return ",\n".join("    { " + ", ".join(number(x) for x in row) + " }" for row in tensor.tolist())


def main():
    torch.manual_seed(20)
    start = torch.randn(N)
    # One gradient of every size: eps must matter, the first step is below the clip, the rest above.
    gradients = torch.randn(STEPS, N) * torch.tensor([[0.1], [1.0], [3.0]])
    gradients[:, 3] = 1e-9
    gradients[:, 4] = 0
    print("/* update.h - made by make_update.py with torch", torch.__version__.split("+")[0] + ". */")
    print("#ifndef KD_GOLDEN_UPDATE_H\n#define KD_GOLDEN_UPDATE_H\n")
    print("/* clang-format off */")
    print(f"enum {{ GOLDEN_N = {N}, GOLDEN_STEPS = {STEPS} }};")
    print(f"static const float golden_max_norm = {MAX_NORM}f;\n")
    print("static const float golden_start[1][GOLDEN_N] = {\n" + rows(start[None]) + ",\n};\n")
    print("static const float golden_gradients[GOLDEN_STEPS][GOLDEN_N] = {\n" + rows(gradients) + ",\n};\n")
    for name, make in CASES:
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make([parameter])
        after, norms = [], []
        for gradient in gradients:
            parameter.grad = gradient.clone()
            norms.append(torch.nn.utils.clip_grad_norm_([parameter], MAX_NORM).item())
            optimizer.step()
            after.append(parameter.detach().clone())
        print(f"static const float golden_{name}[GOLDEN_STEPS][GOLDEN_N] = {{")
        print(rows(torch.stack(after)) + ",\n};\n")
    print("static const float golden_norms[1][GOLDEN_STEPS] = {\n" + rows(torch.tensor([norms])) + ",\n};\n")
    print("#endif")


main()
