"""Losses between features of the same shape."""

import torch
import torch.nn.functional as F


def normal(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def hidden_mse(student, teacher):
    return ((student - teacher) ** 2).mean(1)


def cosine(student, teacher):
    return 1 - F.cosine_similarity(student, teacher, dim=1, eps=1e-12)


def normalised_mse(student, teacher):
    return ((F.normalize(student) - F.normalize(teacher)) ** 2).sum(1)


def rows(n, width, near=False):
    student = normal(1, n, width, scale=2)
    teacher = student + normal(2, n, width, scale=1e-3) if near else normal(2, n, width)
    return {"student": student, "teacher": teacher}


WEIGHT = torch.tensor([1.0, 0.0, 0.25, 2.0, 1.0])

CASES = []
for formula in (hidden_mse, cosine, normalised_mse):
    CASES += [
        (formula.__name__, "plain", {}, rows(7, 33), formula),
        # Differences a thousandth of what they are between: f32 has lost three digits of them.
        (formula.__name__, "near", {}, rows(3, 260, near=True), formula, 3e-4),
        (formula.__name__, "weighted", {}, rows(5, 16) | {"weight": WEIGHT}, formula),
        (formula.__name__, "one", {}, rows(1, 3), formula),
    ]
