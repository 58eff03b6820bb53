"""Losses between features of the same shape."""

import math

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


def attention_transfer(student, teacher, power=2.0, over="places", form="code"):
    axis = 1 if over == "places" else (2, 3)
    u, v = (F.normalize(f.abs().pow(power).sum(axis).flatten(1)) for f in (student, teacher))
    if form == "paper":
        return (u - v).norm(dim=1)
    return ((u - v) ** 2).mean(1)


def hint(student, teacher):
    return ((student - teacher) ** 2).flatten(1).mean(1)


def nst(student, teacher, eps=1e-12):
    x, y = (F.normalize(f.flatten(2), dim=2, eps=eps) for f in (student, teacher))

    def kernel(a, b):
        return (a @ b.transpose(1, 2)).square().mean((1, 2))

    return kernel(y, y) + kernel(x, x) - 2 * kernel(x, y)


def dead(maps, channel):
    maps["student"][:, channel] = 0
    return maps


def maps(b, c, d, h, w):
    return {"student": normal(3, b, c, h, w), "teacher": normal(4, b, d, h, w, scale=2)}


for name, options, inputs in (
    ("plain", {}, maps(3, 5, 7, 4, 6)),
    ("weighted", {}, maps(5, 2, 3, 3, 3) | {"weight": WEIGHT}),
    ("paper", {"form": "paper"}, maps(3, 5, 7, 4, 6)),
    ("channels", {"over": "channels", "power": 3}, maps(2, 6, 6, 5, 3)),
    ("first", {"power": 1}, maps(2, 4, 9, 3, 5)),
    ("steep", {"power": 4.5, "form": "paper"}, maps(2, 4, 3, 3, 5)),
    ("one", {}, maps(1, 1, 1, 2, 2)),
):
    CASES.append(("attention_transfer", name, options, inputs, attention_transfer))
for name, inputs in (
    ("plain", maps(3, 5, 5, 4, 6)),
    ("weighted", maps(5, 2, 2, 3, 3) | {"weight": WEIGHT}),
    ("one", maps(1, 1, 1, 1, 1)),
):
    CASES.append(("hint", name, {}, inputs, hint))


def each(definition):
    """What is a mean over samples, of each sample."""

    def units(**of):
        alone = ({n: t[i : i + 1] for n, t in of.items()} for i in range(len(of["student"])))
        return torch.stack([definition(**one) for one in alone])

    return units


def repdistiller_nst(student, teacher):
    def poly(a, b):
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2)

    s, t = (F.normalize(f.reshape(*f.shape[:2], -1), dim=2) for f in (student, teacher))
    return poly(t, t).mean() + poly(s, s).mean() - 2 * poly(s, t).mean()


# By places, then by channels: of 30 places and 3 and 4 channels.
for name, options, inputs in (
    ("plain", {}, maps(3, 9, 7, 4, 3)),
    ("channels", {}, maps(2, 3, 4, 5, 6)),
    ("weighted", {}, maps(5, 6, 4, 3, 3) | {"weight": WEIGHT}),
    ("weighted_channels", {}, maps(5, 2, 3, 5, 5) | {"weight": WEIGHT}),
    ("eps", {"eps": 4.0}, maps(2, 5, 3, 2, 3)),
    ("one", {}, maps(1, 1, 1, 4, 2)),
    ("dead", {}, dead(maps(2, 5, 3, 2, 2), 3)),
):
    CASES.append(("nst", name, options, inputs, nst))
CASES.append(("nst", "repdistiller", {}, maps(3, 5, 7, 3, 3), each(repdistiller_nst)))


def vid(student, teacher, log_variance, eps=1e-5, variance=5.0):
    v = (F.softplus(log_variance) + eps)[None, :, None, None]
    return (((student - teacher) ** 2 / v + v.log()) / 2).mean((1, 2, 3))


def repdistiller_vid(student, teacher, log_variance):
    """The mean over elements of a normal distribution's negative log-likelihood, but for its constant."""
    v = torch.log(1.0 + torch.exp(log_variance)) + 1e-5
    normal = torch.distributions.Normal(student, v.sqrt().view(1, -1, 1, 1).expand_as(student))
    return -(normal.log_prob(teacher) + 0.5 * math.log(2 * math.pi)).mean((1, 2, 3))


def variances(c):
    return {"log_variance": normal(6, c, scale=3)}


WIDE = torch.tensor([-90.0, -4.0, 3.0, 90.0])
LEARNT = ("student", "log_variance")
for name, options, inputs, formula in (
    ("plain", {}, maps(3, 5, 5, 4, 6) | variances(5), vid),
    ("weighted", {}, maps(5, 2, 2, 3, 3) | variances(2) | {"weight": WEIGHT}, vid),
    ("eps", {"eps": 0.5}, maps(2, 4, 4, 3, 2) | {"log_variance": WIDE}, vid),
    ("one", {}, maps(1, 1, 1, 1, 1) | variances(1), vid),
    ("repdistiller", {}, maps(3, 4, 4, 3, 3) | variances(4), repdistiller_vid),
):
    CASES.append(("vid", name, options, inputs, (formula, LEARNT)))
