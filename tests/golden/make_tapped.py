#!/usr/bin/env python3
"""Writes step/twin and step/tapped.safetensors: a step whose terms read hidden states and attention.

    python3 tests/golden/make_tapped.py tests/golden/step

twin/                a Llama directory with as many heads as make_step.py's student, but wider ones
tapped.safetensors   over make_step.py's batch (its cu, labels, documents), N = 32 rows, under `twin`
  projector.weight [m, 40, 32], projector.bias [m, 40]   one for each hidden state m = 0, 1, 2
  standard hidden attention value query [1]     the terms below
  loss [1]             0.3 ce + 0.6 standard + 0.02 hidden + 0.5 attention + 0.7 value + 0.2 query
  gradient.<name>      of loss, under the student's names, and gradient.projector.*

  standard    T^2 KL(teacher || student) at T = 2 of z-scores of the logits, deviation over C - 1
  hidden      sum over the hidden states 0, 1, 2 (embeddings, between, after the last norm) of the mean
              over labelled rows and columns of (W s + b - t)^2
  attention   sum over both layers of KL(teacher || student) of attention maps, mean over labelled rows
              and heads
  value query MiniLM's relations of the last layer, of both cut into 2 heads, the same mean

Every mean is over the labelled rows of the batch.  All in float64, stored as f32.
"""
import os
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers.models.llama import modeling_llama

import make_step

TWIN = transformers.LlamaConfig(
    vocab_size=89, hidden_size=40, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=2)
RELATION_HEADS = 2


class Watch:
    """Queries and keys after position, and values, of every layer that runs."""

    def __init__(self, model):
        self.q, self.k, self.v = [], [], []
        self.hooks = [layer.self_attn.v_proj.register_forward_hook(
            lambda _, __, out: self.v.append(out.flatten(0, 1))) for layer in model.model.layers]

    def __enter__(self):
        self.rotate = modeling_llama.apply_rotary_pos_emb

        def rotate(*arguments, **more):
            q, k = self.rotate(*arguments, **more)
            for seen, x in ((self.q, q), (self.k, k)):  # [B, H, T, d] -> [N, H, d]
                seen.append(x.transpose(1, 2).flatten(0, 1))
            return q, k

        modeling_llama.apply_rotary_pos_emb = rotate
        return self

    def __exit__(self, *_):
        modeling_llama.apply_rotary_pos_emb = self.rotate
        for hook in self.hooks:
            hook.remove()


def look(model, batch):
    """Logits, hidden states [N, D] with the last one normed, and what attention sees."""
    piece = torch.repeat_interleave(torch.arange(len(make_step.PIECES)),
                                    torch.tensor(make_step.PIECES)).view(2, 16)
    seen = (piece[:, :, None] == piece[:, None, :]) & torch.ones(16, 16, dtype=torch.bool).tril()
    with Watch(model) as watch:
        out = model(batch["tokens"].view(2, 16), position_ids=batch["positions"].view(2, 16),
                    attention_mask=seen[:, None], use_cache=False, output_hidden_states=True)
    return out.logits.flatten(0, 1), [h.flatten(0, 1) for h in out.hidden_states], watch


def seen_pairs():
    piece = torch.repeat_interleave(torch.arange(len(make_step.PIECES)),
                                    torch.tensor(make_step.PIECES))
    return (piece[:, None] == piece[None, :]) & torch.ones(32, 32, dtype=torch.bool).tril()


def log_map(q, k):
    """log softmax over what each row sees of q k / sqrt(d): [H, N, N]; keys repeat over heads."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
    return scores.masked_fill(~seen_pairs(), -torch.inf).log_softmax(-1)


def divergence(teacher, student, valid):
    """KL by row, mean over labelled rows and heads."""
    p = teacher.exp()
    each = torch.where(p > 0, p * (teacher - student), torch.zeros_like(p)).sum(-1)
    return each[:, valid].mean()


def relation(x, heads):
    x = x.flatten(1).view(x.shape[0], heads, -1)
    return log_map(x, x)


def z_scores(logits):
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-7)


def terms(student, teacher, projector, batch):
    valid = batch["labels"] >= 0
    with torch.no_grad():
        t_logits, t_hidden, t = look(teacher, batch)
    logits, hidden, s = look(student, batch)
    ce = torch.nn.functional.cross_entropy(logits[valid], batch["labels"][valid])
    standard = 4 * torch.nn.functional.kl_div(
        (z_scores(logits[valid]) / 2).log_softmax(-1), (z_scores(t_logits[valid]) / 2).log_softmax(-1),
        reduction="batchmean", log_target=True)
    hid = sum(((h @ w.T + b - g)[valid] ** 2).mean()
              for h, g, w, b in zip(hidden, t_hidden, projector["weight"], projector["bias"]))
    attention = sum(divergence(log_map(tq, tk), log_map(sq, sk), valid)
                    for tq, tk, sq, sk in zip(t.q, t.k, s.q, s.k))
    value = divergence(relation(t.v[-1], RELATION_HEADS), relation(s.v[-1], RELATION_HEADS), valid)
    query = divergence(relation(t.q[-1], RELATION_HEADS), relation(s.q[-1], RELATION_HEADS), valid)
    return {"ce": ce, "standard": standard, "hidden": hid, "attention": attention, "value": value,
            "query": query, "loss": 0.3 * ce + 0.6 * standard + 0.02 * hid + 0.5 * attention + 0.7 * value + 0.2 * query}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = sys.argv[1]
    torch.set_num_threads(1)
    batch = make_step.make_batch()
    student, twin = make_step.build(make_step.STUDENT, 3), make_step.build(TWIN, 5)
    twin.save_pretrained(os.path.join(out, "twin"))
    os.remove(os.path.join(out, "twin", "generation_config.json"))
    generator = torch.Generator().manual_seed(9)
    projector = {"weight": 0.2 * torch.randn(3, 40, 32, generator=generator),
                 "bias": 0.2 * torch.randn(3, 40, generator=generator)}
    tensors = {f"projector.{name}": values.clone() for name, values in projector.items()}
    projector = {name: values.double().requires_grad_() for name, values in projector.items()}

    values = terms(make_step.in_float64(student), make_step.in_float64(twin), projector, batch)
    values["loss"].backward()
    tensors |= {name: value.detach().float().reshape(1) for name, value in values.items()}
    tensors |= {f"gradient.{name}": w.grad.float() for name, w in student.named_parameters()}
    tensors |= {f"gradient.projector.{name}": w.grad.float() for name, w in projector.items()}
    facts = ", ".join(f"{name} {value.item():.9g}" for name, value in values.items())
    save_file(tensors, os.path.join(out, "tapped.safetensors"),
              {"made_by": f"make_tapped.py, torch {torch.__version__}, transformers "
                          f"{transformers.__version__}; {facts}"})
    print(facts)


if __name__ == "__main__":
    main()
