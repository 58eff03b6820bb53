#!/usr/bin/env python3
"""Writes peers.safetensors: what other systems' distillation losses over logits are, restated from their
definitions in float64, with the gradient of their scalar.

    python3 tests/golden/make_peers.py tests/golden/peers.safetensors

student, teacher f32 [6, 13]; labels i32 [6], -100: ignored; ids i32 [6, 4], the teacher's largest
classes, and log_p f32 [6, 4], their log-probabilities at temperature 1.  Of each line of
src/loss/README.md: `<name>.loss` [1] and `<name>.gradient` [6, 13].  No line of theirs is in here.
"""
import sys

import torch
from safetensors.torch import save_file

ROWS, CLASSES, K = 6, 13, 4

torch.manual_seed(11)
STUDENT = (2.0 * torch.randn(ROWS, CLASSES)).float()
TEACHER = (2.0 * torch.randn(ROWS, CLASSES)).float()
LABELS = torch.tensor([0, 12, -100, 4, 7, -100])
VALID = (LABELS >= 0).double()
N = VALID.sum()
IDS = TEACHER.topk(K, 1).indices
LOG_P = TEACHER.double().log_softmax(1).gather(1, IDS).float()


def log_q(z, temperature=1.0):
    return (z / temperature).log_softmax(1)


def log_p(temperature=1.0):
    return (TEACHER.double() / temperature).log_softmax(1)


def kl(log_a, log_b):
    return (log_a.exp() * (log_a - log_b)).sum(1)


def over_tokens(rows):
    return (rows * VALID).sum() / N


def ce(z):
    picked = log_q(z).gather(1, LABELS.clamp(min=0)[:, None])[:, 0]
    return over_tokens(-picked)


def jsd(z, beta, temperature=1.0):
    a, b = log_p(temperature), log_q(z, temperature)
    if beta in (0.0, 1.0):
        return over_tokens(kl(a, b) if beta == 0.0 else kl(b, a))
    m = (beta * a.exp() + (1.0 - beta) * b.exp()).log()
    return over_tokens(beta * kl(a, m) + (1.0 - beta) * kl(b, m))


def sparse(z, temperature, tail):
    """KL from the K known classes: with a (K+1)th category, or made to sum to 1."""
    known, l = log_q(z, temperature).gather(1, IDS), LOG_P.double()
    if not tail:
        return over_tokens(kl((l / temperature).log_softmax(1), known))
    rest = lambda x: torch.log1p(-x.exp().sum(1, keepdim=True))
    return over_tokens(kl(torch.cat([l, rest(l)], 1), torch.cat([known, rest(known)], 1)))


def z_score(x):
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7)


def dkd(z, alpha, beta, temperature):
    q, p = log_q(z, temperature).exp(), log_p(temperature).exp()
    y = LABELS.clamp(min=0)[:, None]
    others = torch.ones_like(q, dtype=torch.bool).scatter(1, y, False)
    pair = lambda x: torch.cat([x.gather(1, y), (x * others).sum(1, keepdim=True)], 1).log()
    rest = lambda x: (x / (x * others).sum(1, keepdim=True))[others].view(ROWS, -1).log()
    return over_tokens(alpha * kl(pair(p), pair(q)) + beta * kl(rest(p), rest(q)))


LINES = {
    "trl_gkd": lambda z: jsd(z, 0.5),
    "trl_distillation": lambda z: jsd(z, 1.0),
    "trl_server": lambda z: sparse(z, 1.0, True),
    "distillkit": lambda z: 0.5 * ce(z) + 0.5 * 4.0 * jsd(z, 0.0, 2.0),
    "distillkit_sparse": lambda z: 4.0 * sparse(z, 2.0, False),
    "torchtune_forward": lambda z: 0.5 * ce(z)
    + 0.5 * over_tokens(-(log_p().exp() * log_q(z)).sum(1)),
    "torchtune_reverse": lambda z: 0.5 * ce(z) + 0.5 * jsd(z, 1.0),
    "distilbert": lambda z: 5.0 * 4.0 * jsd(z, 0.0, 2.0) + 2.0 * ce(z),
    "distilbert_mse": lambda z: over_tokens(((z - TEACHER.double()) ** 2).sum(1)),
    "torchdistill_kd": lambda z: 0.5 * ce(z) + 0.5 * 16.0 * jsd(z, 0.0, 4.0),
    "torchdistill_standardised": lambda z: 4.0
    * over_tokens(kl((z_score(TEACHER.double()) / 2.0).log_softmax(1), log_q(z_score(z), 2.0))),
    "liger_jsd": lambda z: 0.5 * ce(z) + 0.5 * jsd(z, 0.5, 2.0),
    "modelopt_logits": lambda z: 4.0 * jsd(z, 0.0, 2.0) / CLASSES,
    "modelopt_trainer": lambda z: 4.0 * jsd(z, 0.0, 2.0),
    "modelopt_megatron": lambda z: jsd(z, 0.0, 2.0),
    "modelopt_megatron_topk": lambda z: over_tokens(
        kl((TEACHER.double().gather(1, IDS) / 2.0).log_softmax(1), log_q(z.gather(1, IDS), 2.0))
    ),
    "automodel": lambda z: 0.5 * ce(z) + 0.5 * 4.0 * jsd(z, 0.0, 2.0),
    "axolotl": lambda z: 0.1 * ce(z) + 0.9 * sparse(z, 2.0, False),
    "textbrewer": lambda z: over_tokens(-(log_p(4.0).exp() * log_q(z, 4.0)).sum(1)),
    "tinybert": lambda z: over_tokens(-(log_p().exp() * log_q(z)).sum(1)) / CLASSES,
    "deit_hard": lambda z: 0.5 * ce(z)
    + 0.5 * over_tokens(-log_q(z).gather(1, TEACHER.argmax(1)[:, None])[:, 0]),
    "deit_soft": lambda z: 0.5 * ce(z) + 0.5 * 9.0 * jsd(z, 0.0, 3.0) / CLASSES,
    "mdistiller_dkd": lambda z: ce(z) + 16.0 * dkd(z, 1.0, 8.0, 4.0),
}


def main(path):
    out = {
        "student": STUDENT,
        "teacher": TEACHER,
        "labels": LABELS.int(),
        "ids": IDS.int(),
        "log_p": LOG_P,
    }
    for name, line in LINES.items():
        z = STUDENT.double().requires_grad_()
        loss = line(z)
        (gradient,) = torch.autograd.grad(loss, z)
        out[name + ".loss"], out[name + ".gradient"] = loss.detach()[None].float(), gradient.float()
    save_file(out, path, metadata={"torch": torch.__version__})


main(sys.argv[1])
