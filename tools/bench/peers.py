#!/usr/bin/env python3
"""peers.py - what others take for kd's cells: answers `kd bench --peers "python3 tools/bench/peers.py"`.

    --wheels DIR     a folder with the wheels of Liger and TRL; without them those are left out
    --peers LIST     of: eager, compile, chunked, trl, liger, sdpa, fused   (default: all that fit the cell)
    --patience S     seconds after which a peer, its compilation counted, is given up   (default: 120)
    --device cpu     whatever the question says: that the peers work, where there is no GPU

One JSON object per line in, one out; src/bench/peers.c says what they hold.  Inputs are the patterns
of src/bench/setup.c, so the losses can be held against each other before any time is.  Needs torch.

What each peer is
    eager    the formula as PyTorch's documentation would write it, autograd for the gradient
    compile  the same under torch.compile
    chunked  rows in chunks of 1,024, each recomputed in backward (torch.utils.checkpoint), compiled
    trl      the chunked divergence of TRL's DistillationTrainer, out of its wheel
    liger    LigerFusedLinearJSD and LigerJSD with beta 0 (forward KL), LigerCrossEntropyLoss, its
             RMSNorm, LayerNorm and SwiGLU
    sdpa     scaled_dot_product_attention with its flash kernel, and with cuDNN's
    fused    torch.optim.AdamW(fused=True)
    eager and compile of a loss over features or relations: peers_losses.py's, the papers' own code
    eager and compile of a step, a prompt that is read and a text that is made: step.py's, each in a
    process of its own, whose resident peak is told

Times are the GPU's own: a sample's calls queue up behind a kernel that only passes time, so that what
Python takes to launch them is not counted.  Compilation, autotuning and warm-up come before.
"""

import argparse
import json
import os
import signal
import sys

import torch
import torch.nn.functional as F

import peers_losses
import step
import wheels
from clock import Cell, Run, measured

CHUNK = 1024


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
    if cell.variant in ("ce", "kl", "rkl", "jsd"):
        yield "liger", liger_rows(cell)


def liger_rows(cell):
    def make():
        from liger_kernel.transformers import LigerCrossEntropyLoss, LigerJSD
        student, teacher, labels = logits_of(cell)
        if cell.variant == "ce":
            entropy = LigerCrossEntropyLoss()  # writes the gradient over the logits
        else:
            jsd = LigerJSD(beta={"kl": 0.0, "rkl": 1.0, "jsd": 0.5}[cell.variant])

        def call():
            student.grad = None
            if cell.variant == "ce":
                loss, factor = entropy(student, labels), 1.0
            else:
                q = F.log_softmax(student.float() / 2.0, -1)
                p = F.log_softmax(teacher.float() / 2.0, -1)
                loss, factor = jsd(q, p), 4.0
            loss.backward()  # of the mean over rows: a factor would cost Liger a pass
            return factor * cell.N * loss.detach()

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
        loss = loss + checkpoint(compiled_head, variant, student[rows], weight, teacher[rows],
                                 teacher_weight, labels[rows], use_reentrant=False)
    return loss


compiled_head = torch.compile(whole_head)


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
    yield "compile", with_loss(compiled_head)
    yield "chunked", with_loss(chunked_head)
    if cell.variant == "kl":
        yield "trl", with_loss(trl_head)
        yield "liger", liger_head(cell)


def trl_head(_, student, weight, teacher, teacher_weight, labels):
    divergence_of = wheels.trl_divergence()
    each, _ = divergence_of(student, weight, None, teacher, teacher_weight, None, 0.0, 2.0)
    return 4.0 * each.sum()


def liger_head(cell):
    def make():
        from liger_kernel.transformers import LigerFusedLinearJSD
        jsd = LigerFusedLinearJSD(jsd_beta=0.0, temperature=2.0)
        student, weight, teacher, teacher_weight, _ = head_operands(cell)

        def call():
            student.grad = weight.grad = None
            loss = jsd(student, weight, teacher, teacher_weight, None)
            loss.backward()
            return 4.0 * cell.N * loss.detach()

        return Run(call, student, weight, teacher, teacher_weight)

    return make


# ---- layers -----------------------------------------------------------------------------------


def backward_of(function, output_likes, *operands):
    """Only the backward pass: the graph is made once and kept."""
    inputs = [t.requires_grad_() for t in operands]
    outputs = function(*inputs)

    def call():
        torch.autograd.grad(outputs, inputs, output_likes, retain_graph=True)

    return Run(call, *output_likes, *inputs)


def compared(make_with, function, liger=None):
    """The peers of a row that is one function; liger: its name in liger_kernel.transformers.functional."""
    yield "eager", lambda: make_with(function)
    yield "compile", lambda: make_with(torch.compile(function))
    if liger:
        def from_liger():
            import liger_kernel.transformers.functional as functional
            return make_with(getattr(functional, liger))

        yield "liger", from_liger


def norms(cell, function, backward, gains, liger):
    """Variants: "residual" adds another input and gives the sum, too; "add" takes that sum's gradient."""
    summed = cell.variant in ("residual", "add")
    shape = (cell.N, cell.D)

    def make_with(f):
        x, other = cell.values(shape, 1), cell.values(shape, 3) if summed else None
        weights = [cell.values((cell.D,), 10 + i) for i in range(gains)]
        first = (x, other) if summed else (x,)
        if backward:
            dy = [cell.values(shape, 4 + i) for i in range(2 if summed else 1)]
            return backward_of(lambda a, *g: f(a, *first[1:], *g, EPS), dy, x, *weights)

        def call():
            with torch.no_grad():
                f(*first, *weights, EPS)

        return Run(call, *first)

    return compared(make_with, with_sum(function) if summed else function, liger[summed])


EPS = 1e-5


def with_sum(function):
    def both(x, other, *rest):
        x = x + other
        return function(x, *rest), x

    return both


def rms(x, weight, eps):
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def layer(x, weight, bias, eps):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def turn(x, cosine, sine):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1)


def qk_norm_turn(x, q_weight, k_weight, cosine, sine):
    heads = x.shape[1] - x.shape[1] // 5  # of q; the rest are of k
    q, k = rms(x[:, :heads], q_weight, 1e-6), rms(x[:, heads:], k_weight, 1e-6)
    return turn(torch.cat((q, k), 1), cosine, sine)


def turned(cell, function, weights, backward):
    """Cosines as models take them: made once for all layers, in the type of what is turned."""
    shape = (cell.N, cell.H, cell.d)

    def make_with(f):
        angles = cell.filled((cell.N, 1, cell.d // 2), 0, 6.28, 4, torch.float32)
        tables = angles.cos().to(cell.dtype), angles.sin().to(cell.dtype)
        operands = [cell.values(shape, 1)] + [cell.values((cell.d,), 2 + i) for i in range(weights)]
        if backward:
            return backward_of(lambda *o: f(*o, *tables), [cell.values(shape, 5)], *operands)

        def call():
            with torch.no_grad():
                f(*operands, *tables)

        return Run(call, *operands)

    return compared(make_with, function)


def swiglu(gate, up):
    return F.silu(gate) * up


def elementwise(cell, function, operands, backward, liger=None):
    def make_with(f):
        tensors = [cell.values((cell.N, cell.F), 1 + i) for i in range(operands)]
        if backward:
            return backward_of(f, [cell.values((cell.N, cell.F), 9)], *tensors)

        def call():
            with torch.no_grad():
                f(*tensors)

        return Run(call, *tensors)

    return compared(make_with, function, liger)


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


def entries(cell):
    """ids and factors [N, K], of which the ids' pattern is as long as they are."""
    ids = cell.ids(cell.N * cell.K, cell.V).view(cell.N, cell.K)
    return ids, cell.filled((cell.N, cell.K), -1, 1, 7)


def embedding(cell):
    def make():
        table, (ids, factor) = cell.values((cell.V, cell.D), 1), entries(cell)
        return Run(lambda: void(lambda: F.embedding_bag(ids, table, mode="sum", per_sample_weights=factor)),
                   table)

    if cell.K == 1:
        yield from moved_rows(cell)
    else:
        yield "eager", make


def embedding_products(cell):
    def make():
        x, table, (ids, _) = cell.values((cell.N, cell.D), 2), cell.values((cell.V, cell.D), 1), entries(cell)
        return Run(lambda: void(lambda: torch.einsum("nd,nkd->nk", x, table[ids])), x, table)

    yield "eager", make


def top_classes(cell):
    def make():
        logits = cell.filled((cell.N, cell.V), -4, 4, 2)
        return Run(lambda: void(lambda: F.log_softmax(logits, -1, dtype=torch.float32).topk(cell.K)), logits)

    yield "eager", make


def embedding_backward(cell):
    if cell.K > 1:
        return  # autograd's is that of a sum that it has kept

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


LIGER_RMS = ("liger_rms_norm", "liger_fused_add_rms_norm")  # without and with a sum
LIGER_LAYER = ("liger_layer_norm", None)

ROWS = {
    "row_loss": row_loss,
    "head": head,
    "matmul": matmul,
    "rms_norm": lambda c: norms(c, rms, False, 1, LIGER_RMS),
    "rms_norm_backward": lambda c: norms(c, rms, True, 1, LIGER_RMS),
    "layer_norm": lambda c: norms(c, layer, False, 2, LIGER_LAYER),
    "layer_norm_backward": lambda c: norms(c, layer, True, 2, LIGER_LAYER),
    "rope": lambda c: turned(c, turn, 0, False),
    "qk_norm_rope": lambda c: turned(c, qk_norm_turn, 2, False),
    "qk_norm_rope_backward": lambda c: turned(c, qk_norm_turn, 2, True),
    "swiglu": lambda c: elementwise(c, swiglu, 2, False, "liger_swiglu"),
    "swiglu_backward": lambda c: elementwise(c, swiglu, 2, True, "liger_swiglu"),
    "gelu": lambda c: elementwise(c, gelu_of(c), 1, False),
    "gelu_backward": lambda c: elementwise(c, gelu_of(c), 1, True),
    "relu": lambda c: elementwise(c, F.relu, 1, False),
    "relu_backward": lambda c: elementwise(c, F.relu, 1, True),
    "attention": lambda c: attention(c, False),
    "attention_backward": lambda c: attention(c, True),
    "embedding": embedding,
    "embedding_products": embedding_products,
    "top_classes": top_classes,
    "gather_rows": moved_rows,
    "embedding_backward": embedding_backward,
    "adamw": adamw,
    "fill": lambda c: slab(c, lambda out, x: out.fill_(0.25), 1),
    "copy": lambda c: slab(c, lambda out, x: out.copy_(x), 1),
    "add": lambda c: slab(c, lambda out, a, b: torch.add(a, b, out=out), 2),
    "sum_squares": lambda c: slab(c, lambda out, x: torch.linalg.vector_norm(x), 1),
    **peers_losses.ROWS,
}


def gelu_of(cell):
    form = "tanh" if cell.variant == "tanh" else "none"
    return lambda x: F.gelu(x, approximate=form)


# ---- programs ---------------------------------------------------------------------------------

PROGRAM_STEPS = (1, 3)  # to warm up, to time


def program(question, options):
    """Answers for rows that open models: a process for each engine."""
    dims = question["dims"]
    generated = {"prefill": (dims.get("P"), 0), "decode": (dims.get("P"), dims.get("N"))}
    asked = argparse.Namespace(
        teacher=question["teacher"], student=question["student"], data=question["data"], kd=None,
        threads=options.threads or torch.get_num_threads(), kd_device=None, wheels=None, verbose=False,
        device="cpu" if options.device == "cpu" else question["device"], sequence=dims.get("T"),
        samples=dims.get("B"), steps=PROGRAM_STEPS, generate=generated.get(question["row"]))
    peers = []
    for name, engine in (("eager", "torch eager"), ("compile", "torch compiled")):
        if options.peers and name not in options.peers.split(","):
            continue
        found = step.run_apart(asked, engine, question["dtype"], options.patience)
        if "error" in found:
            peers.append({"name": name, "error": found["error"][:90]})
            continue
        times = sorted(found["step_s"])
        n = len(times)
        peers.append({"name": name, "low": times[n // 5], "median": times[n // 2],
                      "high": times[n - 1 - n // 5], "samples": n, "bytes": found["rss"],
                      "value": found["loss"]})
    return {"peers": peers}


# ---- the conversation -------------------------------------------------------------------------


class OutOfPatience(Exception):
    pass


def give_up(*_):
    raise OutOfPatience("out of patience")


def reason(error):
    text = f"{type(error).__name__}: {error}".split("\n")[0]
    return "out of memory" if "out of memory" in text.lower() else text[:90]


def answer(question, options):
    """The reply, and whether this process can go on: an error of the card stays with it."""
    if question["row"] in ("step", "prefill", "decode"):
        return program(question, options), True
    cell = Cell(question)
    cell.device = options.device or cell.device
    torch._dynamo.reset()
    peers, sound = [], True
    for name, make in ROWS[cell.row](cell) if cell.row in ROWS else ():
        if not sound or (options.peers and name.split()[0] not in options.peers.split(",")) or (
                name in ("liger", "trl") and not options.wheels):
            continue
        signal.setitimer(signal.ITIMER_REAL, options.patience)
        try:
            peers.append({"name": name, **measured(cell, make)})
        except Exception as error:  # whatever a peer fails with is its answer
            peers.append({"name": name, "error": reason(error)})
            sound = "CUDA error" not in str(error) or "out of memory" in str(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if sound:
            cell.clear()
    return {"peers": peers}, sound


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheels")
    parser.add_argument("--peers", default="")
    parser.add_argument("--patience", type=float, default=120)
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.wheels:
        wheels.use(options.wheels)
    signal.signal(signal.SIGALRM, give_up)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        reply, sound = answer(json.loads(line), options)
        print(json.dumps(reply), file=replies, flush=True)
        if not sound:
            sys.exit(1)  # kd starts another


if __name__ == "__main__":
    main()
