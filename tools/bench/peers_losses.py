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


# ---- as peers -----------------------------------------------------------------------------------


def of(formula, letters, students=1, teachers=1, variants=False):
    """A row's peers.  Operands are patterns in the order in which kd's loss reads them, without a period."""

    def peers(cell):
        shape = tuple(getattr(cell, letter) for letter in letters)
        options = {"variant": cell.variant} if variants else {}

        def operand(salt):
            count = torch.Size(shape).numel()
            return cell.filled((1, count), -1, 1, salt).view(shape)

        def with_formula(f):
            def make():
                operands = [operand(1 + i) for i in range(students + teachers)]
                trained = [t.requires_grad_() for t in operands[:students]]

                def call():
                    for t in trained:
                        t.grad = None
                    loss = f(*operands, **options)
                    loss.backward()
                    return shape[0] * loss.detach()

                return Run(call, *operands)

            return make

        yield "eager", with_formula(formula)
        yield "compile", with_formula(torch.compile(formula))

    return peers


ROWS = {
    "loss attention_transfer": of(attention_transfer, "BCHW"),
    "loss cosine": of(cosine, "ND"),
    "loss hidden_mse": of(hidden_mse, "ND"),
    "loss hint": of(hidden_mse, "BCHW"),
    "loss normalised_mse": of(normalised_mse, "ND"),
    "loss cc": of(cc, "BD"),
    "loss pkt": of(pkt, "BD"),
    "loss rkd_angle": of(rkd_angle, "BD"),
    "loss rkd_distance": of(rkd_distance, "BD"),
    "loss sp": of(sp, "BD"),
    "loss attention_kl": of(attention_kl, "NHd", 2, 2, True),
    "loss attention_mse": of(attention_mse, "NHd", 2, 2, True),
    "loss minilm_relation": of(minilm_relation, "NHd", 1, 1, True),
}
