#!/usr/bin/env python3
"""Writes rows.safetensors: every row-logit term and its gradient by PyTorch's float64 autograd.

    python3 tests/golden/make_rows.py tests/golden/rows.safetensors

student [5, 12] and teacher [5, 10] are f32 logits of 9 classes and padding of 1e30; labels [5];
class 3 of the last row is -inf on both sides.  Of every case <term>.<i>: `setting` = (temperature,
option, second option), `loss` [5] without T^2, `gradient` [5, 9] with respect to the student's logits.
"""
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ROWS, CLASSES = 5, 9


def cross_entropy(s, t, y, smoothing):
    return F.cross_entropy(s[None], y[None], label_smoothing=smoothing)


def forward_kl(s, t, y, _):
    return F.kl_div(s.log_softmax(0), t.log_softmax(0), reduction="sum", log_target=True)


def reverse_kl(s, t, y, _):
    return forward_kl(t, s, y, 0.0)


def jsd(s, t, y, beta):  # as in TRL's GKDTrainer.generalized_jsd_loss
    if beta == 0.0:
        return forward_kl(s, t, y, 0.0)
    if beta == 1.0:
        return reverse_kl(s, t, y, 0.0)
    log_q, log_p = s.log_softmax(0), t.log_softmax(0)
    b = torch.tensor(beta, dtype=s.dtype)
    log_m = torch.logsumexp(torch.stack([log_q + torch.log1p(-b), log_p + torch.log(b)]), 0)
    kl_p = F.kl_div(log_m, log_p, reduction="sum", log_target=True)
    kl_q = F.kl_div(log_m, log_q, reduction="sum", log_target=True)
    return beta * kl_p + (1.0 - beta) * kl_q


def skew_kl(s, t, y, lam):
    q, p = s.softmax(0), t.softmax(0)
    return (p * (p.log() - (lam * p + (1.0 - lam) * q).log())).sum()


def skew_reverse_kl(s, t, y, lam):
    q, p = s.softmax(0), t.softmax(0)
    return (q * (q.log() - ((1.0 - lam) * p + lam * q).log())).sum()


def total_variation(s, t, y, _):
    return 0.5 * (s.softmax(0) - t.softmax(0)).abs().sum()


def z_loss(s, t, y, _):
    return s.logsumexp(0).square()


def soft_cross_entropy(s, t, y, _):  # Hinton et al. 2015; TinyBERT eq. 10
    return F.cross_entropy(s[None], t.softmax(0)[None])


def hard_distillation(s, t, y, _):  # DeiT eq. 3, its second half
    return F.cross_entropy(s[None], t.argmax()[None])


def logit_mse(s, t, y, _):
    return F.mse_loss(s, t)


def dkd(s, t, y, alpha, beta):  # Zhao et al. 2022, eq. 7, from probabilities
    q, p = s.softmax(0), t.softmax(0)
    rest = torch.arange(len(s)) != y
    binary_q, binary_p = torch.stack([q[y], q[rest].sum()]), torch.stack([p[y], p[rest].sum()])
    within_q, within_p = q[rest] / q[rest].sum(), p[rest] / p[rest].sum()
    kl = lambda a, b: (a * (a.log() - b.log())).sum()
    return alpha * kl(binary_p, binary_q) + beta * kl(within_p, within_q)


CASES = {
    cross_entropy: [(1.0, 0.0), (1.0, 0.1), (2.0, 0.5)],
    forward_kl: [(1.0, 0.0), (4.0, 0.0), (0.25, 0.0)],
    reverse_kl: [(1.0, 0.0), (2.0, 0.0)],
    jsd: [(1.0, 0.5), (2.0, 0.125), (1.0, 0.0), (1.0, 1.0)],
    skew_kl: [(1.0, 0.125), (2.0, 0.75), (1.0, 0.0)],
    skew_reverse_kl: [(1.0, 0.125), (2.0, 0.75), (1.0, 0.0)],
    total_variation: [(1.0, 0.0), (2.0, 0.0)],
    z_loss: [(1.0, 0.0), (2.0, 0.0)],
    soft_cross_entropy: [(1.0, 0.0), (4.0, 0.0)],
    hard_distillation: [(1.0, 0.0), (2.0, 0.0)],
    logit_mse: [(1.0, 0.0), (2.0, 0.0)],
    dkd: [(1.0, 1.0, 1.0), (4.0, 1.0, 8.0), (2.0, 0.0, 1.0), (2.0, 1.0, 0.0)],
}


def main(path):
    torch.manual_seed(5)
    student, teacher = torch.full((ROWS, 12), 1e30), torch.full((ROWS, 10), 1e30)
    student[:, :CLASSES] = 3.0 * torch.randn(ROWS, CLASSES)
    teacher[:, :CLASSES] = 3.0 * torch.randn(ROWS, CLASSES)
    student[ROWS - 1, 3] = teacher[ROWS - 1, 3] = -torch.inf
    labels = torch.tensor([0, 8, 4, 1, 5], dtype=torch.int32)
    out = {"student": student, "teacher": teacher, "labels": labels}

    for term, settings in CASES.items():
        for i, (temperature, *options) in enumerate(settings):
            losses, gradients = torch.zeros(ROWS), torch.zeros(ROWS, CLASSES)
            for n in range(ROWS):
                live = torch.isfinite(student[n, :CLASSES]).nonzero()[:, 0]
                s = student[n, live].double().requires_grad_()
                t = teacher[n, live].double()
                y = (live == labels[n]).nonzero()[0, 0]
                loss = term(s / temperature, t / temperature, y, *options)
                (gradient,) = torch.autograd.grad(loss, s)
                losses[n], gradients[n, live] = loss.item(), gradient.float()
            name = f"{term.__name__}.{i}"
            out[name + ".setting"] = torch.tensor([temperature, *options, 0.0][:3])
            out[name + ".loss"], out[name + ".gradient"] = losses, gradients
    save_file(out, path, metadata={"torch": torch.__version__})


main(sys.argv[1])
