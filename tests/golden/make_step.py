#!/usr/bin/env python3
"""Writes step/: one whole distillation step, from two checkpoints and a batch to every gradient.

    python3 tests/golden/make_step.py tests/golden/step

teacher/, student/   Llama directories.  The teacher is wider, untied and has 97 columns of
                     vocabulary to the student's 89; the student's head is tied.  Both softmaxes
                     are over 89.
step.safetensors     two samples of 16 tokens, N = 32 rows, as kd's loader lays them out
  tokens positions labels documents i32 [N]
      sample 0: documents of 9 and 7 tokens; sample 1: one of 11, and 5 rows of padding;
      labels are shifted, -1: none
  cu i32 [5]           where the pieces begin; attention stays inside them
  student_logits [N, 89], teacher_logits [N, 97]
  loss ce kl [1]       loss = 0.4 ce + 0.6 * 4 * kl, T = 2, kl(teacher||student); ce and kl are
                       means over the labelled rows of the batch
  gradient.<name>      of loss, under the student's names; a tied weight once

All values are computed in float64 and stored as f32.  The metadata says the losses with 17 digits
and what PyTorch's own float32 gradients are off by, relative to each norm: a yardstick for anyone
else's float32.
"""
import os
import sys

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers.models.llama import modeling_llama

TEMPERATURE, CE, KL = 2.0, 0.4, 0.6
PIECES = (9, 7, 11, 5)
UNSCORED = (3, 12, 20)  # rows whose label is masked, besides the last of each document

STUDENT = transformers.LlamaConfig(
    vocab_size=89, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=2)
TEACHER = transformers.LlamaConfig(
    vocab_size=97, hidden_size=42, intermediate_size=60, num_hidden_layers=3, num_attention_heads=3,
    num_key_value_heads=1, max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=False,
    bos_token_id=1, eos_token_id=2)


class Norm(torch.nn.Module):
    """LlamaRMSNorm without its detour through float32."""

    def __init__(self, old):
        super().__init__()
        self.weight, self.eps = old.weight, old.variance_epsilon

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class Rotation(torch.nn.Module):
    """LlamaRotaryEmbedding, plain frequencies, in the type of its input."""

    def __init__(self, config):
        super().__init__()
        self.size, self.theta = config.head_dim, config.rope_parameters["rope_theta"]

    def forward(self, x, position_ids):
        exponent = torch.arange(0, self.size, 2, dtype=x.dtype) / self.size
        angles = position_ids[..., None].to(x.dtype) * self.theta**-exponent
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


def in_float64(model):
    """transformers computes norms and angles in float32 whatever the type; here all is float64."""
    model = model.double()
    model.model.rotary_emb = Rotation(model.config)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, modeling_llama.LlamaRMSNorm):
                setattr(parent, name, Norm(child))
    return model


def build(config, seed):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        draw = torch.randn(weight.shape, generator=generator)
        weight.data.copy_(1 + 0.2 * draw if "norm" in name else 0.25 * draw)
    return model.eval()


def make_batch():
    """tokens positions labels documents, int64 [32], and cu."""
    generator = torch.Generator().manual_seed(7)
    tokens, positions, labels, documents = [], [], [], []
    for index, length in enumerate(PIECES):
        padding = index == 3
        ids = torch.randint(3, 89, (length,), generator=generator).tolist()
        tokens += [0] * length if padding else ids
        positions += range(length)
        labels += [-1] * length if padding else ids[1:] + [-1]
        documents += [-1 if padding else index] * length
    labels = [-1 if row in UNSCORED else label for row, label in enumerate(labels)]
    batch = {"tokens": tokens, "positions": positions, "labels": labels, "documents": documents}
    batch = {name: torch.tensor(values) for name, values in batch.items()}
    batch["cu"] = torch.tensor([0, *torch.tensor(PIECES).cumsum(0).tolist()])
    return batch


def forward(model, batch):
    """Logits [32, V]: two rows of 16, causal within each piece and blind beyond it."""
    piece = torch.repeat_interleave(torch.arange(len(PIECES)), torch.tensor(PIECES)).view(2, 16)
    seen = (piece[:, :, None] == piece[:, None, :]) & torch.ones(16, 16, dtype=torch.bool).tril()
    return model(batch["tokens"].view(2, 16), position_ids=batch["positions"].view(2, 16),
                 attention_mask=seen[:, None], use_cache=False).logits.flatten(0, 1)


def step(student, teacher, batch):
    """(losses, logits of both, gradients by name)."""
    classes = student.config.vocab_size
    with torch.no_grad():
        t = forward(teacher, batch)
    s = forward(student, batch)
    valid = batch["labels"] >= 0
    ce = F.cross_entropy(s[valid], batch["labels"][valid])
    kl = F.kl_div((s[valid] / TEMPERATURE).log_softmax(-1),
                  (t[valid, :classes] / TEMPERATURE).log_softmax(-1),
                  reduction="batchmean", log_target=True)
    loss = CE * ce + KL * TEMPERATURE**2 * kl
    student.zero_grad()
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in student.named_parameters()}
    return {"loss": loss, "ce": ce, "kl": kl}, {"student": s, "teacher": t}, gradients


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = sys.argv[1]
    torch.set_num_threads(1)
    batch = make_batch()
    student, teacher = build(STUDENT, 3), build(TEACHER, 4)
    for name, model in (("student", student), ("teacher", teacher)):
        model.save_pretrained(os.path.join(out, name))
        os.remove(os.path.join(out, name, "generation_config.json"))

    _, _, narrow = step(student, teacher, batch)
    losses, logits, gradients = step(in_float64(student), in_float64(teacher), batch)
    off = max(((narrow[name] - g).norm() / g.norm()).item() for name, g in gradients.items())

    tensors = {name: values.to(torch.int32) for name, values in batch.items()}
    tensors |= {f"{name}_logits": values.detach().float() for name, values in logits.items()}
    tensors |= {name: value.detach().float().reshape(1) for name, value in losses.items()}
    tensors |= {f"gradient.{name}": g.float() for name, g in gradients.items()}
    # One key, because safetensors writes several in an order that changes from run to run.
    facts = ", ".join(f"{name} {value.item():.17g}" for name, value in losses.items())
    facts = (f"make_step.py, torch {torch.__version__}, transformers {transformers.__version__}; "
             f"{facts}; float32 gradients off by at most {off:.1e}")
    save_file(tensors, os.path.join(out, "step.safetensors"), {"made_by": facts})
    size = sum(os.path.getsize(os.path.join(folder, file))
               for folder, _, files in os.walk(out) for file in files)
    print(facts, f"{int((batch['labels'] >= 0).sum())} labels, {len(gradients)} gradients,",
          f"{size:,} bytes")


if __name__ == "__main__":
    main()
