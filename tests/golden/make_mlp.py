#!/usr/bin/env python3
"""Writes mlp/: one distillation step of classifiers of samples, from folders to every gradient.

    python3 tests/golden/make_mlp.py tests/golden/mlp

teacher/, relu/, gelu/, gelu_tanh/, linear/   MLPs; the teacher's hidden layer and the first of a
                      student's are of one width, `linear` has no hidden layer
samples.safetensors   `inputs` f32 [12, 7], `labels` i64 [12], as kd's loader reads them
<student>.safetensors loss ce kl hid [1], and gradient.<name> of loss under the student's names;
                      loss = 0.4 ce + 0.6 * 4 * kl + 0.5 hid, T = 2, kl(teacher||student), hid the mean
                      squared difference of the two layers of one width (0 for linear); all are means
                      over samples

The networks are written out here with plain matrix products and derivatives by torch.autograd, which
gradcheck holds against central differences.  All values are computed in float64 and stored as f32.
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file

SAMPLES, INPUTS, CLASSES, TEMPERATURE = 12, 7, 5, 2.0
MODELS = {"teacher": ([6], "relu"), "relu": ([6, 4], "relu"), "gelu": ([6, 4, 9], "gelu"),
          "gelu_tanh": ([6], "gelu_new"), "linear": ([], "relu")}
ACTIVATIONS = {"relu": lambda x: torch.where(x > 0, x, 0 * x),
               "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
               "gelu_new": lambda x: 0.5 * x * (
                   1 + torch.tanh((2 / torch.pi)**0.5 * (x + 0.044715 * x**3)))}


def weights(sizes, generator):
    made = {}
    for name, a, b in [*((f"layers.{i}", *ab) for i, ab in enumerate(zip(sizes, sizes[1:]))),
                       ("classifier", sizes[-1], CLASSES)]:
        made[f"{name}.weight"] = torch.randn(b, a, generator=generator) / a**0.5
        made[f"{name}.bias"] = 0.3 * torch.randn(b, generator=generator)
    return made


def forward(model, kind, x):
    """Logits, and what the first hidden layer puts out."""
    sizes, act = MODELS[kind]
    first = None
    for i in range(len(sizes)):
        x = ACTIVATIONS[act](x @ model[f"layers.{i}.weight"].T + model[f"layers.{i}.bias"])
        first = x if first is None else first
    return x @ model["classifier.weight"].T + model["classifier.bias"], first


def losses(student, kind, teacher, inputs, labels):
    s, s_hidden = forward(student, kind, inputs)
    t, t_hidden = forward(teacher, "teacher", inputs)
    ce = -s.log_softmax(-1)[torch.arange(SAMPLES), labels].mean()
    p, q = (t / TEMPERATURE).log_softmax(-1), (s / TEMPERATURE).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    hid = 0 * ce if s_hidden is None else ((s_hidden - t_hidden)**2).mean()
    return {"ce": ce, "kl": kl, "hid": hid,
            "loss": 0.4 * ce + 0.6 * TEMPERATURE**2 * kl + 0.5 * hid}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = sys.argv[1]
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(SAMPLES, INPUTS, generator=generator)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    os.makedirs(out, exist_ok=True)
    save_file({"inputs": inputs, "labels": labels}, os.path.join(out, "samples.safetensors"))
    models = {}
    for name, (sizes, act) in MODELS.items():
        models[name] = weights([INPUTS, *sizes], generator)
        folder = os.path.join(out, name)
        os.makedirs(folder, exist_ok=True)
        save_file(models[name], os.path.join(folder, "model.safetensors"), {"format": "pt"})
        config = {"model_type": "mlp", "architectures": ["MLPForClassification"],
                  "input_size": INPUTS, "hidden_sizes": sizes, "num_labels": CLASSES,
                  "hidden_act": act}
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2)
            file.write("\n")
    wide = {name: {k: w.double() for k, w in model.items()} for name, model in models.items()}
    for name in MODELS:
        if name == "teacher":
            continue
        student = {k: w.requires_grad_() for k, w in wide[name].items()}
        arguments = (name, wide["teacher"], inputs.double(), labels)
        assert torch.autograd.gradcheck(
            lambda *w: losses(dict(zip(student, w)), *arguments)["loss"], tuple(student.values()))
        values = losses(student, *arguments)
        values["loss"].backward()
        tensors = {k: v.detach().float().reshape(1) for k, v in values.items()}
        tensors |= {f"gradient.{k}": w.grad.float() for k, w in student.items()}
        facts = ", ".join(f"{k} {v.item():.9g}" for k, v in values.items())
        save_file(tensors, os.path.join(out, f"{name}.safetensors"),
                  {"made_by": f"make_mlp.py, torch {torch.__version__}; {facts}"})
        print(name, facts)


if __name__ == "__main__":
    main()
