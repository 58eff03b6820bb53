"""peers_losses.py - what losses over features and relations cost as the papers' users run them.

Each formula is the public code's: it materialises what that does, B B D differences and B^3 angles for RKD,
B C C H W products for NST, whole maps of attention.  Gradients are autograd's.  A formula gives the mean
over units (rows of its first operand); its sum is what kd's is held against.
"""

import torch
import torch.nn.functional as F

from clock import Run


# ---- features: RepDistiller, PKD and DistilBERT --------------------------------------------------


def attention_transfer(student, teacher):
    def attention(x):
        return F.normalize(x.pow(2).mean(1).view(len(x), -1))

    return (attention(student) - attention(teacher)).pow(2).mean()


def cosine(student, teacher):
    return F.cosine_embedding_loss(student, teacher, student.new_ones(len(student)))


def hidden_mse(student, teacher):
    return F.mse_loss(student, teacher)


def normalised_mse(student, teacher):
    return (F.normalize(student) - F.normalize(teacher)).pow(2).sum(1).mean()


def nst(student, teacher):
    def kernel(a, b):
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2)

    s, t = (F.normalize(x.view(x.shape[0], x.shape[1], -1), dim=2) for x in (student, teacher))
    return kernel(t, t).mean().detach() + kernel(s, s).mean() - 2 * kernel(s, t).mean()


def vid(student, teacher, log_variance, eps=1e-5):
    variance = (torch.log(1.0 + torch.exp(log_variance)) + eps).view(1, -1, 1, 1)
    return torch.mean(0.5 * ((student - teacher)**2 / variance + torch.log(variance)))


# ---- relations of a batch: lenscloth/RKD, RepDistiller -------------------------------------------


def cc(student, teacher):
    delta = torch.abs(student - teacher)
    return (delta[:-1] * delta[1:]).sum(1).mean()


def pkt(student, teacher, eps=1e-7):
    def conditional(x):
        x = x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + eps)
        x[x != x] = 0
        similarity = (torch.mm(x, x.transpose(0, 1)) + 1.0) / 2.0
        return similarity / torch.sum(similarity, dim=1, keepdim=True)

    q, p = conditional(student), conditional(teacher)
    return torch.mean(p * torch.log((p + eps) / (q + eps)))


def rkd_angle(student, teacher):
    def angles(x):
        apart = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), p=2, dim=2)
        return torch.bmm(apart, apart.transpose(1, 2)).view(-1)

    with torch.no_grad():
        targets = angles(teacher)
    return F.smooth_l1_loss(angles(student), targets)


def rkd_distance(student, teacher):
    def relative(x):
        squares, products = x.pow(2).sum(dim=1), x @ x.t()
        d = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * products).clamp(min=1e-12).sqrt()
        d = d.clone()
        d[range(len(x)), range(len(x))] = 0
        return d / d[d > 0].mean()

    with torch.no_grad():
        targets = relative(teacher)
    return F.smooth_l1_loss(relative(student), targets)


def sp(student, teacher):
    n = len(student)
    g_s = F.normalize(torch.mm(student, torch.t(student)))
    g_t = F.normalize(torch.mm(teacher, torch.t(teacher)))
    difference = g_t - g_s
    return (difference * difference).view(-1, 1).sum(0).squeeze() / (n * n)


# ---- relations of a document: MiniLM, TinyBERT ---------------------------------------------------


def scores(rows, others, variant):
    """[H, N, N] of [N, H, d]; of causal ones -inf where a row does not see."""
    rows, others = rows.transpose(0, 1), others.transpose(0, 1)
    s = rows @ others.transpose(1, 2) / rows.shape[-1]**0.5
    if variant == "full":
        return s
    n = s.shape[-1]
    return s.masked_fill(torch.ones(n, n, dtype=torch.bool, device=s.device).triu(1), float("-inf"))


def maps_kl(s, t):
    """Its sum over what is seen: -inf - -inf is left out of it."""
    p, log_q, log_p = t.softmax(-1), s.log_softmax(-1), t.log_softmax(-1)
    hidden = log_p == float("-inf")
    each = p * (log_p.masked_fill(hidden, 0) - log_q.masked_fill(hidden, 0))
    return each.sum() / (s.shape[0] * s.shape[1])


def attention_kl(student_q, student_k, teacher_q, teacher_k, variant):
    return maps_kl(scores(student_q, student_k, variant), scores(teacher_q, teacher_k, variant))


def attention_mse(student_q, student_k, teacher_q, teacher_k, variant):
    s, t = scores(student_q, student_k, variant), scores(teacher_q, teacher_k, variant)
    return F.mse_loss(torch.where(s <= -1e2, torch.zeros_like(s), s),
                      torch.where(t <= -1e2, torch.zeros_like(t), t))


def minilm_relation(student, teacher, variant):
    return maps_kl(scores(student, student, variant), scores(teacher, teacher, variant))


# ---- CRD: RepDistiller's crd/memory.py and criterion.py -------------------------------------------


class Contrast:
    """Both banks and Z, gathered rows and all; a call renews the banks."""

    def __init__(self, student_bank, teacher_bank, temperature=0.07, momentum=0.5):
        self.banks = student_bank, teacher_bank
        self.temperature, self.momentum = temperature, momentum
        self.z = [None, None]

    def side(self, side, x, rows):
        bank = self.banks[1 - side]
        chosen = torch.index_select(bank, 0, rows.reshape(-1)).view(*rows.shape, -1)
        p = torch.exp(torch.bmm(chosen, x.view(*x.shape, 1)) / self.temperature)
        if self.z[side] is None:
            self.z[side] = float(p.detach().mean()) * len(bank)
        p = (p / self.z[side]).squeeze(2)
        noise = (rows.shape[1] - 1) / len(bank)
        positive, negative = p[:, 0], p[:, 1:]
        log_near = torch.log(positive / (positive + noise + 1e-7))
        log_far = torch.log(noise / (negative + noise + 1e-7))
        return -(log_near.sum() + log_far.reshape(-1).sum()) / len(x)

    def renew(self, bank, x, samples):
        moved = self.momentum * torch.index_select(bank, 0, samples) + (1 - self.momentum) * x
        bank.index_copy_(0, samples, F.normalize(moved))

    def __call__(self, student, teacher, samples, negatives):
        s, t = F.normalize(student), F.normalize(teacher)
        rows = torch.cat((samples.unsqueeze(1), negatives), 1)
        loss = self.side(0, s, rows) + self.side(1, t, rows)
        with torch.no_grad():
            self.renew(self.banks[0], s, samples)
            self.renew(self.banks[1], t, samples)
        return loss


def crd(cell):
    def make():
        student, teacher = (pattern(cell, (cell.B, cell.D), 1 + i).requires_grad_() for i in range(2))
        samples = cell.filled((cell.B,), 0, cell.n, 3, torch.int64)
        negatives = cell.filled((cell.B, cell.K), 0, cell.n, 4, torch.int64)
        banks = [(3 / cell.D) ** 0.5 * pattern(cell, (cell.n, cell.D), 5 + i) for i in range(2)]
        contrast = Contrast(*banks)

        def call():
            student.grad = teacher.grad = None
            loss = contrast(student, teacher, samples, negatives)
            loss.backward()
            return cell.B * loss.detach()

        return Run(call, student, teacher, samples, negatives, *banks)

    yield "eager", make


# ---- as peers -----------------------------------------------------------------------------------


def pattern(cell, shape, salt):
    """No two rows alike."""
    return cell.filled((1, torch.Size(shape).numel()), -1, 1, salt).view(shape)


def of(formula, reads, trained=(0,), variants=False):
    """A row's peers.  Operands are patterns in the order in which kd's loss reads them."""

    def peers(cell):
        shapes = [tuple(getattr(cell, letter) for letter in letters) for letters in reads.split()]
        options = {"variant": cell.variant} if variants else {}

        def with_formula(f):
            def make():
                operands = [pattern(cell, shape, 1 + i) for i, shape in enumerate(shapes)]
                leaves = [operands[i].requires_grad_() for i in trained]

                def call():
                    for t in leaves:
                        t.grad = None
                    loss = f(*operands, **options)
                    loss.backward()
                    return shapes[0][0] * loss.detach()

                return Run(call, *operands)

            return make

        yield "eager", with_formula(formula)
        yield "compile", with_formula(torch.compile(formula))

    return peers


MAPS, ROWS_OF, HEADS = "BCHW BCHW", "ND ND", "NHd NHd"
ROWS = {
    "loss attention_transfer": of(attention_transfer, MAPS),
    "loss cosine": of(cosine, ROWS_OF),
    "loss hidden_mse": of(hidden_mse, ROWS_OF),
    "loss hint": of(hidden_mse, MAPS),
    "loss normalised_mse": of(normalised_mse, ROWS_OF),
    "loss nst": of(nst, MAPS),
    "loss vid": of(vid, MAPS + " C", (0, 2)),
    "loss cc": of(cc, "BD BD"),
    "loss pkt": of(pkt, "BD BD"),
    "loss rkd_angle": of(rkd_angle, "BD BD"),
    "loss rkd_distance": of(rkd_distance, "BD BD"),
    "loss sp": of(sp, "BD BD"),
    "loss crd": crd,
    "loss attention_kl": of(attention_kl, HEADS + " " + HEADS, (0, 1), True),
    "loss attention_mse": of(attention_mse, HEADS + " " + HEADS, (0, 1), True),
    "loss minilm_relation": of(minilm_relation, HEADS, (0,), True),
}
