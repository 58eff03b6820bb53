"""Attention maps and MiniLM's relations, with the maps: a softmax or a difference of whole matrices per
document and head (MiniLM, arXiv 2002.10957; MiniLMv2, 2012.15828; TinyBERT, 1909.10351, equation 7)."""

import math

import torch
import torch.nn.functional as F


def heads(x, relation_heads):
    """[N, H, d] as [R, N, H d / R]."""
    n, h, d = x.shape
    r = relation_heads or h
    return x.reshape(n, r, h * d // r).transpose(0, 1)


def scores(q, k, softcap=0.0, temperature=1.0):
    """[H, N, N]; key heads repeated."""
    k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
    s = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    return s / temperature


def seen(documents, n, causal, window):
    """[N, N] of pairs that are compared."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    for begin, end in zip(documents[:-1].tolist(), documents[1:].tolist()):
        mask[begin:end, begin:end] = True
    ahead = torch.arange(n)[None] - torch.arange(n)[:, None]
    if causal:
        mask &= ahead <= 0
    if window:
        mask &= ahead.abs() < window
    return mask


def kl_rows(s, t, mask):
    """Mean over heads of KL(softmax(t) || softmax(s)) per row; rows that see nothing have none."""
    rows = mask.any(1)
    hide = torch.where(mask, 0.0, -torch.inf)[rows].double()
    q, p = (s[:, rows] + hide).log_softmax(2), (t[:, rows] + hide).softmax(2)
    kl = F.kl_div(torch.where(mask[rows], q, 0.0), p, reduction="none").sum(2).mean(0)
    return torch.zeros(s.shape[1], dtype=s.dtype).index_put((rows.nonzero()[:, 0],), kl)


def attention_kl(student_q, student_k, teacher_q, teacher_k, documents, temperature=1.0,
                 t_squared=False, causal=True, window=0, softcap=0.0, teacher_softcap=0.0,
                 relation_heads=0, student_lse=None, teacher_lse=None):
    s = scores(heads(student_q, relation_heads), heads(student_k, relation_heads), softcap,
               temperature)
    t = scores(heads(teacher_q, relation_heads), heads(teacher_k, relation_heads),
               teacher_softcap, temperature)
    value = kl_rows(s, t, seen(documents, len(student_q), causal, window))
    return value * temperature**2 if t_squared else value


def attention_mse(student_q, student_k, teacher_q, teacher_k, documents, causal=True, window=0,
                  softcap=0.0, teacher_softcap=0.0, floor=0.0, pairs=0):
    s = scores(heads(student_q, 0), heads(student_k, 0), softcap)
    t = scores(heads(teacher_q, 0), heads(teacher_k, 0), teacher_softcap)
    if floor:
        s, t = (torch.where(x <= floor, torch.zeros_like(x), x) for x in (s, t))
    mask = seen(documents, len(student_q), causal, window)
    per_row = torch.full((len(mask),), pairs) if pairs else mask.sum(1).clamp(min=1)
    return ((s - t) ** 2 * mask).sum(2).mean(0) / per_row


def tinybert(student_q, student_k, teacher_q, teacher_k, documents, causal, floor):
    """TinyBERT's MSELoss of clamped scores [B, H, L, L], of documents of one length, row by row."""
    shape = (len(documents) - 1, -1, *student_q.shape[1:])
    s, t = ((q.reshape(shape).transpose(1, 2) @ k.reshape(shape).permute(0, 2, 3, 1))
            / math.sqrt(q.shape[2]) for q, k in ((student_q, student_k), (teacher_q, teacher_k)))
    s, t = (torch.where(x <= -1e2, torch.zeros_like(x), x) for x in (s, t))
    return F.mse_loss(s, t, reduction="none").mean((1, 3)).flatten()


def minilm_relation(student, teacher, documents, causal=True, window=0, relation_heads=0,
                    temperature=1.0):
    x, y = heads(student, relation_heads), heads(teacher, relation_heads)
    mask = seen(documents, len(student), causal, window)
    return kl_rows(scores(x, x, 0.0, temperature), scores(y, y, 0.0, temperature), mask)


random = torch.Generator().manual_seed(17)
N = 23
DOCUMENTS = torch.tensor([0, 1, 9, 9, 21], dtype=torch.int32)  # the last two rows are of none


def rows(h, d, size=1.0):
    return size * torch.randn(N, h, d, generator=random)


def maps(h, g, d, f, e, size=1.0):
    return {"student_q": rows(h, d, size), "student_k": rows(g, d, size),
            "teacher_q": rows(h, e, size), "teacher_k": rows(f, e, size), "documents": DOCUMENTS}


def with_lse(inputs):
    """As attention saves it, of the stored numbers."""
    mask = seen(inputs["documents"], N, True, 0)
    hide = torch.where(mask, 0.0, -torch.inf)
    for side in ("student", "teacher"):
        q, k = (heads(inputs[f"{side}_{x}"].double(), 0) for x in "qk")
        inputs[f"{side}_lse"] = (scores(q, k) + hide).logsumexp(2)
    return inputs


def values(h, d, r, e):
    return {"student": rows(h, d), "teacher": rows(r, e), "documents": DOCUMENTS}


WEIGHT = torch.rand(N, generator=random) * (torch.arange(N) % 4 > 0)

CASES = [
    ("attention_kl", "causal", {}, maps(4, 4, 16, 4, 24), attention_kl),
    ("attention_kl", "grouped", {}, {**maps(6, 2, 8, 3, 16), "weight": WEIGHT}, attention_kl),
    ("attention_kl", "saved_lse", {}, with_lse(maps(4, 2, 16, 4, 24)), attention_kl),
    ("attention_kl", "both_ways", {"causal": False, "temperature": 2.0, "t_squared": True},
     maps(2, 2, 8, 2, 8, 2.0), attention_kl),
    ("attention_kl", "softcap", {"softcap": 1.5, "teacher_softcap": 2.5, "window": 4},
     maps(2, 1, 8, 2, 8, 2.0), attention_kl),
    ("attention_kl", "relation_heads", {"relation_heads": 4},
     {"student_q": rows(2, 16), "student_k": rows(2, 16), "teacher_q": rows(3, 16),
      "teacher_k": rows(3, 16), "documents": DOCUMENTS}, attention_kl),
    ("attention_mse", "causal", {}, {**maps(4, 2, 16, 4, 24), "weight": WEIGHT}, attention_mse),
    ("attention_mse", "both_ways", {"causal": False, "window": 5}, maps(2, 2, 8, 2, 8, 2.0),
     attention_mse),
    ("attention_mse", "clamp", {"causal": False, "floor": -1.0, "pairs": 12},
     maps(2, 2, 8, 2, 8, 2.0), attention_mse),
    ("attention_mse", "tinybert", {"causal": False, "floor": -100.0},
     {**maps(3, 3, 16, 3, 16, 6.0), "documents": torch.tensor([0, 23], dtype=torch.int32)},
     tinybert),
    ("attention_mse", "softcap", {"softcap": 1.5}, maps(2, 1, 8, 2, 8, 2.0), attention_mse),
    ("minilm_relation", "values", {"causal": False}, values(3, 16, 3, 24), minilm_relation),
    ("minilm_relation", "relation_heads", {"causal": False, "relation_heads": 6},
     {**values(3, 16, 4, 18), "weight": WEIGHT}, minilm_relation),
    ("minilm_relation", "causal", {"temperature": 0.5, "window": 3}, values(2, 8, 2, 4),
     minilm_relation),
]
