#!/usr/bin/env python3
"""Writes students/<case>.safetensors: the step of make_step.py with students of other architectures.

    python3 tests/golden/make_students.py tests/golden/students

The students are those of models/, the teacher is step/teacher and the batch is that of step/.  Here the
student has the larger vocabulary (101 columns) and the teacher 97, over which both softmaxes are.
Every piece goes through the models by itself.

  loss ce kl [1], gradient.<name>             as in step/step.safetensors, in float64, stored as f32
"""
import os
import sys

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

import make_step

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = ("gpt2", "qwen2", "qwen3")
CLASSES = 97


class Rotation(torch.nn.Module):
    """A rotary embedding of plain frequencies in float64; transformers computes its angles in float32."""

    def __init__(self, old):
        super().__init__()
        size = 2 * old.inv_freq.numel()
        exponent = torch.arange(0, size, 2, dtype=torch.float64) / size
        self.frequencies = old.config.rope_parameters["rope_theta"] ** -exponent

    def forward(self, x, position_ids):
        angles = position_ids[..., None].double() * self.frequencies
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


def load(folder):
    """The model in float64, also where transformers insists on float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child).__name__
            if kind.endswith("RMSNorm"):
                setattr(parent, name, make_step.Norm(child))
            elif kind.endswith("RotaryEmbedding"):
                setattr(parent, name, Rotation(child))
    return model


def forward(model, batch):
    cu = batch["cu"].tolist()
    return torch.cat([model(batch["tokens"][None, a:b], use_cache=False).logits[0]
                      for a, b in zip(cu, cu[1:])])


def write(out, case, teacher_logits, batch):
    student = load(os.path.join(HERE, "models", case))
    valid, labels = batch["labels"] >= 0, batch["labels"]
    logits = forward(student, batch)[valid, :CLASSES]
    assert logits.dtype == torch.float64
    t = make_step.TEMPERATURE
    ce = F.cross_entropy(logits, labels[valid])
    kl = F.kl_div((logits / t).log_softmax(-1), (teacher_logits[valid, :CLASSES] / t).log_softmax(-1),
                  reduction="batchmean", log_target=True)
    loss = make_step.CE * ce + make_step.KL * t**2 * kl
    loss.backward()
    tensors = {f"gradient.{name}": w.grad.float().contiguous() for name, w in student.named_parameters()}
    tensors |= {name: x.detach().float().reshape(1) for name, x in (("loss", loss), ("ce", ce), ("kl", kl))}
    path = os.path.join(out, f"{case}.safetensors")
    save_file(tensors, path, {"made_by": f"make_students.py, torch {torch.__version__}, "
                                         f"transformers {transformers.__version__}"})
    print(f"{case}: loss {loss.item():.6f}, ce {ce.item():.6f}, kl {kl.item():.6f}, "
          f"{len(tensors) - 3} gradients, {os.path.getsize(path):,} bytes")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    os.makedirs(sys.argv[1], exist_ok=True)
    batch = make_step.make_batch()
    with torch.no_grad():
        teacher_logits = forward(load(os.path.join(HERE, "step", "teacher")), batch)
    for case in CASES:
        write(sys.argv[1], case, teacher_logits, batch)


if __name__ == "__main__":
    main()
