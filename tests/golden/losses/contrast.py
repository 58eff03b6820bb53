"""Contrastive representation distillation, as the paper's estimator of probabilities has it: no logarithm of
anything but probabilities.  A unit is a sample; the state is two banks and two constants Z."""

import torch
import torch.nn.functional as F


def normal(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


WEIGHT = torch.tensor([1.0, 0.0, 0.25, 2.0, 1.0, 0.5])


def crd(kept):
    """`kept`: which samples of the batch there are at all."""

    def formula(
        student, teacher, samples, negatives, student_bank, teacher_bank, partition,
        temperature=0.07, momentum=0.5, eps=1e-7,
    ):
        ids = torch.cat([samples[:, None], negatives], 1).long()[kept]
        n, k = len(student_bank), negatives.shape[1]
        value, z = student.new_zeros(len(student)), list(partition)
        sides = ((student, teacher_bank), (teacher, student_bank))
        for side, (x, bank) in enumerate(sides):
            v = F.normalize(x[kept])
            scores = torch.exp(torch.einsum("bkd,bd->bk", bank[ids], v) / temperature)
            if z[side] == 0:
                z[side] = scores.detach().mean() * n
            # A sample is the pair's with probability p against K draws of noise, uniform over n.
            p, noise = scores / z[side], k / n
            is_pair = p[:, 0] / (p[:, 0] + noise + eps)
            is_noise = noise / (p[:, 1:] + noise + eps)
            value[kept] = value[kept] - (is_pair.log() + is_noise.log().sum(1))
        banks = {"student_bank": student_bank.clone(), "teacher_bank": teacher_bank.clone()}
        for name, x in zip(banks, (student, teacher)):
            old = banks[name].clone()
            for b in torch.arange(len(x))[kept].tolist():
                mixed = momentum * old[samples[b]] + (1 - momentum) * F.normalize(x[b], dim=0)
                banks[name][samples[b]] = mixed / mixed.norm()
        return value, banks | {"partition": torch.stack(z)}

    return formula, ("student", "teacher")


def batch(b, k, n, d, z=(60.0, 45.0), samples=None):
    draw = torch.Generator().manual_seed(9)
    unit = lambda seed: F.normalize(normal(seed, n, d))
    return {
        "student": normal(1, b, d, scale=2),
        "teacher": normal(2, b, d) + 0.3,
        "samples": torch.tensor(samples or torch.randperm(n, generator=draw)[:b].tolist()).int(),
        "negatives": torch.randint(n, (b, k), generator=draw).int(),
        "student_bank": unit(3),
        "teacher_bank": unit(4),
        "partition": torch.tensor(z),
    }


def repdistiller(
    student, teacher, samples, negatives, student_bank, teacher_bank, partition, **options
):
    """RepDistiller's definition, its K + 1 columns and its mean over the batch: what src/loss/README.md says to
    set.  `eps` is a constant of its, momentum and temperature its nce_m and nce_t."""
    tiny, n = 1e-7, len(student_bank)
    columns = torch.cat([samples[:, None], negatives], 1).long()

    def side(x, memory, z):
        x = x / x.pow(2).sum(1, keepdim=True).sqrt()
        out = torch.exp((memory[columns] @ x[:, :, None]).squeeze(2) / 0.07) / z
        m, noise = negatives.shape[1], 1 / n
        hit = out[:, 0] / (out[:, 0] + m * noise + tiny)
        miss = m * noise / (out[:, 1:] + m * noise + tiny)
        return -(hit.log() + miss.log().sum(1))

    def update(memory, x):
        row = 0.5 * memory[samples.long()] + 0.5 * F.normalize(x)
        return memory.index_copy(0, samples.long(), row / row.pow(2).sum(1, keepdim=True).sqrt())

    value = side(student, teacher_bank, partition[0]) + side(teacher, student_bank, partition[1])
    after = {
        "student_bank": update(student_bank, student),
        "teacher_bank": update(teacher_bank, teacher),
        "partition": partition,
    }
    return value, after


ALL = slice(None)
TWICE = [4, 7, 4, 0, 7, 4]  # sample 7's first row and the last two of 4 have weight in "weighted"
CASES = [
    ("crd", "plain", {}, batch(5, 13, 40, 19), crd(ALL)),
    ("crd", "first", {}, batch(4, 50, 30, 24, z=(0.0, 0.0)), crd(ALL)),
    ("crd", "equal", {}, batch(6, 8, 12, 7, samples=TWICE), crd(ALL)),
    (
        "crd",
        "weighted",
        {},
        batch(6, 9, 12, 8, z=(0.0, 33.0), samples=TWICE) | {"weight": WEIGHT},
        crd(WEIGHT != 0),
    ),
    (
        "crd",
        "options",
        {"temperature": 0.4, "momentum": 0.9, "eps": 0.01},
        batch(4, 6, 9, 130),
        crd(ALL),
    ),
    ("crd", "one", {}, batch(1, 1, 2, 3), crd(ALL)),
    (
        "crd",
        "repdistiller",
        {},
        batch(5, 11, 25, 16),
        (repdistiller, ("student", "teacher")),
    ),
]
