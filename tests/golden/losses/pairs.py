"""Losses over the pairs of a batch: differences of all pairs and angles of all triples, as the papers have
them.  A unit is a sample; with `kept`, the batch is those samples alone."""

import torch
import torch.nn.functional as F


def normal(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def distances(x):
    off = ~torch.eye(len(x), dtype=torch.bool)
    d = torch.zeros(len(x), len(x), dtype=x.dtype)
    # Equal rows are left at 0, where a norm has no gradient.
    off &= (x[:, None, :] - x[None, :, :]).detach().abs().sum(-1) > 0
    d[off] = (x[:, None, :] - x[None, :, :])[off].norm(dim=-1)
    return d


def rkd_distance(student, teacher, whole_mean=False, l2_normalise=False):
    def relative(x):
        d = distances(F.normalize(x) if l2_normalise else x)
        return d / (d.mean() if whole_mean else d[d > 0].mean())

    return F.smooth_l1_loss(relative(student), relative(teacher), reduction="none").mean(1)


def rkd_angle(student, teacher, l2_normalise=False):
    def angles(x):
        x = F.normalize(x) if l2_normalise else x
        e = F.normalize(x[None, :, :] - x[:, None, :], dim=2)
        return torch.einsum("ijd,ikd->ijk", e, e)

    return F.smooth_l1_loss(angles(student), angles(teacher), reduction="none").mean((1, 2))


def pkt(student, teacher, eps=1e-7):
    def conditional(x):
        x = x / (x.norm(dim=1, keepdim=True) + eps)
        k = (x @ x.T + 1.0) / 2.0
        return k / k.sum(dim=1, keepdim=True)

    p, q = conditional(teacher), conditional(student)
    return (p * torch.log((p + eps) / (q + eps))).mean(1)


def sp(student, teacher):
    g_s, g_t = F.normalize(student @ student.T), F.normalize(teacher @ teacher.T)
    return (g_s - g_t).square().sum(1) / len(student)


def cc(student, teacher):
    delta = (student - teacher).abs()
    products = (delta[:-1] * delta[1:]).sum(1) * len(delta) / (len(delta) - 1)
    return torch.cat([products, products.new_zeros(1)])


WEIGHT = torch.tensor([1.0, 0.0, 0.25, 2.0, 1.0, 0.0, 0.5])


def of_the_kept(formula):
    """The formula over the samples whose weight is not 0; the others' values are 0."""

    def kept(student, teacher, **options):
        keep = WEIGHT != 0
        value = student.new_zeros(len(student))
        value[keep] = formula(student[keep], teacher[keep], **options)
        return value

    return kept


def batch(n, width, teacher_width, equal=False):
    student, teacher = normal(1, n, width, scale=2), normal(2, n, teacher_width) + 0.5
    if equal:
        student[3], teacher[3], teacher[5] = student[0], teacher[0], teacher[1]
    return {"student": student, "teacher": teacher}


CASES = []
for formula, settings in (
    (rkd_distance, {"whole": {"whole_mean": True}, "l2": {"l2_normalise": True}}),
    (rkd_angle, {"l2": {"l2_normalise": True}}),
    (pkt, {"eps": {"eps": 1e-3}}),
    (sp, {}),
    (cc, {}),
):
    name, other = formula.__name__, 19 if formula is cc else 33
    CASES += [
        (name, "plain", {}, batch(9, 19, other), formula),
        (name, "equal", {}, batch(8, 19, other, equal=True), formula),
        (name, "weighted", {}, batch(7, 19, other) | {"weight": WEIGHT}, of_the_kept(formula)),
    ]
    for case, options in settings.items():
        CASES.append((name, case, options, batch(9, 19, other), formula))
