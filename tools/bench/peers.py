#!/usr/bin/env python3
"""peers.py - what others take for kd's cells: answers `kd bench --peers "python3 tools/bench/peers.py"`.

    --liger DIR      a folder with Liger's wheel or package; without it Liger is left out
    --peers LIST     of: eager, compile, trl, liger, sdpa, fused   (default: all that fit the cell)

One JSON object per line in, one out; src/bench/peers.c says what they hold.  Inputs are the patterns
of src/bench/setup.c, so the losses can be held against each other before any time is.  Needs torch.

What each peer is
    eager    the formula as PyTorch's documentation would write it, autograd for the gradient
    compile  the same under torch.compile
    trl      rows in chunks of 256, each recomputed in backward (torch.utils.checkpoint), compiled:
             how TRL's trainers hold the head's memory down, stated anew
    liger    LigerFusedLinearJSD and LigerJSD with beta 0 (forward KL), LigerRMSNorm, LigerSwiGLU
    sdpa     scaled_dot_product_attention with its flash kernel, and with cuDNN's
    fused    torch.optim.AdamW(fused=True)
"""

import argparse
import glob
import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
L2_TIMES_FOUR = 256 << 20
CHUNK = 256


# ---- patterns and clocks ----------------------------------------------------------------------


class Cell:
    def __init__(self, question):
        self.row, self.variant = question["row"], question["variant"]
        self.dtype = DTYPES[question["dtype"]]
        self.device = question["device"]
        self.seconds = question["seconds"]
        self.__dict__.update(question["dims"])

    def filled(self, shape, low, high, salt, dtype=None):
        count = 1
        for n in shape:
            count *= n
        period = min(count, 1 << 20 if len(shape) == 1 else 64 * shape[-1])
        index = torch.arange(1, period + 1, dtype=torch.int64, device=self.device)
        mixed = (index * 2654435761 + salt * 40503) & 0xFFFFFFFF
        unit = ((mixed * 2246822519) >> 8 & 0xFFFFFF).double() * 2.0**-24
        values = (low + (high - low) * unit).to(dtype or self.dtype)
        return values.repeat(-(-count // period))[:count].view(shape)

    def values(self, shape, salt):
        return self.filled(shape, -1, 1, salt)

    def ids(self, n, below):
        return self.filled((n,), 0, below, 9, torch.int64)

    def sync(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


def measured(cell, make):
    """Times of make()'s calls: each set of operands in turn, at least ten samples."""
    if cell.device == "cuda":
        torch.cuda.empty_cache()
    first = make()
    bytes_of = sum(t.numel() * t.element_size() for t in first.inputs)
    sets = max(1, min(3, int(L2_TIMES_FOUR // max(bytes_of, 1)) + 1))
    runs = [first] + [make() for _ in range(sets - 1)]
    for run in runs * 2:
        value = run()
    cell.sync()
    if cell.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        runs[0]()
        cell.sync()
        taken = torch.cuda.max_memory_allocated() - before
    begin = time.perf_counter()
    runs[0]()
    cell.sync()
    rounds = max(1, int(1e-3 / max(time.perf_counter() - begin, 1e-9) / sets))
    samples, start = [], time.perf_counter()
    while len(samples) < 10 or (len(samples) < 400 and time.perf_counter() - start < cell.seconds):
        begin = time.perf_counter()
        for _ in range(rounds):
            for run in runs:
                run()
        cell.sync()
        samples.append((time.perf_counter() - begin) / (rounds * sets))
    samples.sort()
    n = len(samples)
    return {"low": samples[n // 5], "median": statistics.median(samples),
            "high": samples[n - 1 - n // 5], "samples": n,
            "bytes": taken if cell.device == "cuda" else None,
            "value": None if value is None else float(value)}


class Run:
    """A call and the tensors that it works on."""

    def __init__(self, call, *inputs):
        self.call, self.inputs = call, [t for t in inputs if t is not None]

    def __call__(self):
        return self.call()


# ---- losses -----------------------------------------------------------------------------------


def divergence(kind, student, teacher, temperature):
    q = F.log_softmax(student.float() / temperature, -1)
    p = F.log_softmax(teacher.float() / temperature, -1)
    if kind == "kl":
        return F.kl_div(q, p, reduction="sum", log_target=True)
    if kind == "rkl":
        return F.kl_div(p, q, reduction="sum", log_target=True)
    m = torch.logsumexp(torch.stack([p, q]), 0) - torch.log(torch.tensor(2.0, device=p.device))
    return 0.5 * (F.kl_div(m, p, reduction="sum", log_target=True) +
                  F.kl_div(m, q, reduction="sum", log_target=True))


def total_loss(variant, student, teacher, labels):
    """Sum over rows, T = 2 and T^2 for divergences, T = 1 for cross entropy."""
    loss = 0.0
    for kind in variant.split("+"):
        if kind == "ce":
            loss = loss + F.cross_entropy(student.float(), labels, reduction="sum")
        else:
            loss = loss + 4.0 * divergence(kind, student, teacher, 2.0)
    return loss


def logits_of(cell):
    student = cell.filled((cell.N, cell.V), -4, 4, 1).requires_grad_()
    teacher = cell.filled((cell.N, cell.V), -4, 4, 2) if cell.variant != "ce" else None
    return student, teacher, cell.ids(cell.N, cell.V)


def row_loss(cell):
    def with_loss(function):
        def make():
            student, teacher, labels = logits_of(cell)

            def call():
                student.grad = None
                loss = function(cell.variant, student, teacher, labels)
                (loss / cell.N).backward()
                return loss.detach()

            return Run(call, student, teacher)

        return make

    yield "eager", with_loss(total_loss)
    yield "compile", with_loss(torch.compile(total_loss))
    if cell.variant in ("kl", "rkl", "jsd"):
        yield "liger", liger_rows(cell)


def liger_rows(cell):
    def make():
        from liger_kernel.transformers import LigerJSD
        jsd = LigerJSD(beta={"kl": 0.0, "rkl": 1.0, "jsd": 0.5}[cell.variant])
        student, teacher, _ = logits_of(cell)

        def call():
            student.grad = None
            q = F.log_softmax(student.float() / 2.0, -1)
            p = F.log_softmax(teacher.float() / 2.0, -1)
            loss = 4.0 * jsd(q, p)  # a mean over rows
            loss.backward()
            return loss.detach() * cell.N

        return Run(call, student, teacher)

    return make


# ---- the head ---------------------------------------------------------------------------------


def head_operands(cell):
    spread = 4 / cell.s**0.5
    student = cell.values((cell.N, cell.s), 1).requires_grad_()
    weight = cell.filled((cell.V, cell.s), -spread, spread, 2).requires_grad_()
    teacher = cell.values((cell.N, cell.t), 3)
    teacher_weight = cell.filled((cell.V, cell.t), -spread, spread, 4)
    return student, weight, teacher, teacher_weight, cell.ids(cell.N, cell.V)


def whole_head(variant, student, weight, teacher, teacher_weight, labels):
    with torch.no_grad():
        targets = teacher @ teacher_weight.T
    return total_loss(variant, student @ weight.T, targets, labels)


def chunked_head(variant, student, weight, teacher, teacher_weight, labels):
    from torch.utils.checkpoint import checkpoint
    loss = 0.0
    for at in range(0, len(student), CHUNK):
        rows = slice(at, at + CHUNK)
        loss = loss + checkpoint(whole_head, variant, student[rows], weight, teacher[rows],
                                 teacher_weight, labels[rows], use_reentrant=False)
    return loss


def head(cell):
    def with_loss(function):
        def make():
            operands = head_operands(cell)
            student, weight = operands[:2]

            def call():
                student.grad = weight.grad = None
                loss = function(cell.variant, *operands)
                (loss / cell.N).backward()
                return loss.detach()

            return Run(call, *operands[:4])

        return make

    yield "eager", with_loss(whole_head)
    yield "compile", with_loss(torch.compile(whole_head))
    yield "trl", with_loss(torch.compile(chunked_head))
    if cell.variant == "kl":
        yield "liger", liger_head(cell)


def liger_head(cell):
    def make():
        from liger_kernel.transformers import LigerFusedLinearJSD
        jsd = LigerFusedLinearJSD(jsd_beta=0.0, temperature=2.0)
        student, weight, teacher, teacher_weight, _ = head_operands(cell)

        def call():
            student.grad = weight.grad = None
            loss = 4.0 * jsd(student, weight, teacher, teacher_weight)
            loss.backward()
            return loss.detach() * cell.N

        return Run(call, student, weight, teacher, teacher_weight)

    return make


# ---- layers -----------------------------------------------------------------------------------


def backward_of(function, output_like, *operands):
    """Only the backward pass: the graph is made once and kept."""
    inputs = [t.requires_grad_() for t in operands]
    output = function(*inputs)

    def call():
        torch.autograd.grad(output, inputs, output_like, retain_graph=True)

    return Run(call, output_like, *inputs)


def norms(cell, function, backward, *weights):
    residual = cell.variant == "residual"

    def forward_call(f):
        def make():
            x = cell.values((cell.N, cell.D), 1)
            other = cell.values((cell.N, cell.D), 3) if residual else None
            gains = [cell.values((cell.D,), 10 + i) for i in range(*weights)]

            def call():
                with torch.no_grad():
                    f(x, other, *gains)

            return Run(call, x, other)

        return make

    def backward_call(f):
        def make():
            x = cell.values((cell.N, cell.D), 2)
            gains = [cell.values((cell.D,), 10 + i) for i in range(*weights)]
            return backward_of(lambda a, *g: f(a, None, *g), cell.values((cell.N, cell.D), 1), x, *gains)

        return make

    both = backward_call if backward else forward_call
    yield "eager", both(function)
    yield "compile", both(torch.compile(function))


def rms(x, other, weight):
    x = x if other is None else x + other
    return F.rms_norm(x, x.shape[-1:], weight, 1e-5), x


def rms_alone(x, other, weight):
    return F.rms_norm(x, x.shape[-1:], weight, 1e-5)


def layer(x, other, weight, bias):
    x = x if other is None else x + other
    return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5), x


def layer_alone(x, other, weight, bias):
    return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


def swiglu(gate, up):
    return F.silu(gate) * up


def elementwise(cell, function, operands, backward):
    def with_function(f):
        def make():
            tensors = [cell.values((cell.N, cell.F), 1 + i) for i in range(operands)]
            if backward:
                return backward_of(f, cell.values((cell.N, cell.F), 9), *tensors)

            def call():
                with torch.no_grad():
                    f(*tensors)

            return Run(call, *tensors)

        return make

    yield "eager", with_function(function)
    yield "compile", with_function(torch.compile(function))


def attention(cell, backward):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    kv = cell.H // 8 if cell.variant == "gqa8" else cell.H

    def with_backend(backend):
        def make():
            shape = lambda heads: (cell.B, cell.T, heads, cell.d)
            q, k, v = (cell.values(shape(h), i).transpose(1, 2).requires_grad_(backward)
                       for i, h in ((1, cell.H), (2, kv), (3, kv)))

            def run():
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q, k, v, is_causal=cell.variant != "full",
                                                          enable_gqa=kv != cell.H)

            if not backward:
                return Run(lambda: void(run), q, k, v)
            out = run()
            d_out = torch.ones_like(out)
            return Run(lambda: void(lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True)),
                       q, k, v)

        return make

    if cell.device == "cuda" and cell.dtype == torch.bfloat16:
        yield "sdpa flash", with_backend(SDPBackend.FLASH_ATTENTION)
        yield "sdpa cudnn", with_backend(SDPBackend.CUDNN_ATTENTION)
    else:
        yield "sdpa", with_backend([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])


def void(call):
    call()


# ---- products, slabs, updates -----------------------------------------------------------------


def matmul(cell):
    def make():
        a, w = cell.values((cell.M, cell.K), 1), cell.values((cell.N, cell.K), 2)
        return Run(lambda: void(lambda: a @ w.T), a, w)

    yield "eager", make


def slab(cell, function, operands):
    def make():
        tensors = [cell.values((cell.n,), 1 + i) for i in range(operands)]
        out = torch.empty_like(tensors[0])
        return Run(lambda: void(lambda: function(out, *tensors)), out, *tensors)

    yield "eager", make


def embedding_backward(cell):
    def make():
        table = cell.values((cell.V, cell.D), 1)
        ids, dy = cell.ids(cell.N, cell.V), cell.values((cell.N, cell.D), 2)
        return Run(lambda: void(lambda: torch.ops.aten.embedding_dense_backward(dy, ids, len(table), -1,
                                                                                False)), dy, table)

    yield "eager", make


def moved_rows(cell):
    def make():
        table, ids = cell.values((cell.V, cell.D), 1), cell.ids(cell.N, cell.V)
        return Run(lambda: void(lambda: table[ids]), table)

    yield "eager", make


def adamw(cell):
    def make():
        param = torch.nn.Parameter(cell.filled((cell.n,), -1, 1, 1, torch.float32))
        param.grad = cell.filled((cell.n,), -1, 1, 2, torch.float32)
        weights = None if cell.dtype == torch.float32 else param.detach().to(cell.dtype)
        optimizer = torch.optim.AdamW([param], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

        def call():
            optimizer.step()
            if weights is not None:
                weights.copy_(param.detach())

        return Run(call, param, param.grad, weights)

    yield "fused", make


ROWS = {
    "row_loss": row_loss,
    "head": head,
    "matmul": matmul,
    "rms_norm": lambda c: norms(c, rms, False, 1),
    "rms_norm_backward": lambda c: norms(c, rms_alone, True, 1),
    "layer_norm": lambda c: norms(c, layer, False, 2),
    "layer_norm_backward": lambda c: norms(c, layer_alone, True, 2),
    "swiglu": lambda c: elementwise(c, swiglu, 2, False),
    "swiglu_backward": lambda c: elementwise(c, swiglu, 2, True),
    "gelu": lambda c: elementwise(c, gelu_of(c), 1, False),
    "gelu_backward": lambda c: elementwise(c, gelu_of(c), 1, True),
    "attention": lambda c: attention(c, False),
    "attention_backward": lambda c: attention(c, True),
    "embedding": moved_rows,
    "gather_rows": moved_rows,
    "embedding_backward": embedding_backward,
    "adamw": adamw,
    "fill": lambda c: slab(c, lambda out, x: out.fill_(0.25), 1),
    "copy": lambda c: slab(c, lambda out, x: out.copy_(x), 1),
    "add": lambda c: slab(c, lambda out, a, b: torch.add(a, b, out=out), 2),
    "sum_squares": lambda c: slab(c, lambda out, x: torch.linalg.vector_norm(x), 1),
}


def gelu_of(cell):
    form = "tanh" if cell.variant == "tanh" else "none"
    return lambda x: F.gelu(x, approximate=form)


# ---- the conversation -------------------------------------------------------------------------


def answer(question, chosen):
    cell = Cell(question)
    torch._dynamo.reset()
    peers = []
    for name, make in ROWS[cell.row](cell) if cell.row in ROWS else ():
        if chosen and name.split()[0] not in chosen:
            continue
        try:
            peers.append({"name": name, **measured(cell, make)})
        except Exception as error:  # whatever a peer fails with is its answer
            text = f"{type(error).__name__}: {error}".split("\n")[0]
            peers.append({"name": name, "error": "out of memory" if "out of memory" in text else text[:90]})
    return {"peers": peers}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--liger")
    parser.add_argument("--peers", default="")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.liger:
        sys.path[:0] = glob.glob(os.path.join(options.liger, "*.whl")) + [options.liger]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    chosen = set(options.peers.split(",")) - {""}
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), chosen)), file=replies, flush=True)


if __name__ == "__main__":
    main()
