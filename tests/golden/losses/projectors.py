"""Losses over what a projector makes of the student's features."""

import torch
import torch.nn.functional as F


def normal(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


ACTIVATIONS = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}


def places(function, x):
    """A function over rows, of the places of maps."""
    return function(x.movedim(1, -1)).movedim(-1, 1)


def project(x, parameters, type, activation="gelu", output="none", normalise="none", **_):
    def parameter(i, what):
        return parameters.get(f"projector.{i}.{what}")

    # torch.nn.functional.normalize and torch.nn.Conv2d have channels in dimension 1, as rows have their columns.
    if normalise in ("before", "both"):
        x = F.normalize(x, dim=1)
    weight, bias = parameter(0, "weight"), parameter(0, "bias")
    if type in ("conv1x1", "conv"):
        x = F.conv2d(x, weight, bias)
    if type in ("linear", "mlp"):
        x = places(lambda rows: F.linear(rows, weight, bias), x)
    if type == "mlp":
        x = ACTIVATIONS[activation](x)
        x = places(lambda rows: F.linear(rows, parameter(1, "weight"), parameter(1, "bias")), x)
    x = ACTIVATIONS[output](x)
    return F.normalize(x, dim=1) if normalise in ("after", "both") else x


def hint(student, teacher):
    return ((student - teacher) ** 2).flatten(1).mean(1)


def cosine(student, teacher):
    return 1 - F.cosine_similarity(student, teacher, dim=1, eps=1e-12)


def vid(student, teacher, log_variance):
    v = (F.softplus(log_variance) + 1e-5)[None, :, None, None]
    return (((student - teacher) ** 2 / v + v.log()) / 2).mean((1, 2, 3))


def behind(loss):
    def value(student, teacher, projector, log_variance=None, **parameters):
        own = {} if log_variance is None else {"log_variance": log_variance}
        return loss(project(student, parameters, **projector), teacher, **own)

    return value


def inputs(projector, student, teacher, weight=None):
    """Parameters of a projector from one shape to the other."""
    options = {"width": 2 * teacher[1], "bias": True} | projector
    kernel = tuple(s - t + 1 for s, t in zip(student[2:], teacher[2:]))
    shapes = {
        "linear": [(teacher[1], student[1])],
        "mlp": [(options["width"], student[1]), (teacher[1], options["width"])],
        "conv1x1": [(teacher[1], student[1], 1, 1)],
        "conv": [(teacher[1], student[1], *kernel)],
    }[projector["type"]]
    given = {"student": normal(11, *student), "teacher": normal(12, *teacher)}
    for i, shape in enumerate(shapes):
        reach = (shape[0] / normal(0, *shape).numel()) ** 0.5
        given[f"projector.{i}.weight"] = normal(13 + i, *shape, scale=reach)
        if options["bias"]:
            given[f"projector.{i}.bias"] = normal(23 + i, shape[0], scale=0.3)
    if weight is not None:
        given["weight"] = torch.tensor(weight)
    return given


CASES = []
SMALL, FLAT, ROWS = ((3, 4, 5, 6), (3, 7, 3, 5)), ((3, 4, 5, 6), (3, 7, 5, 6)), ((6, 5), (6, 9))
ONE = ((1, 1, 3, 4), (1, 1, 1, 1))  # the whole map is one patch
WEIGHTS = [0.5, 0.0, 2.0]
for loss, case, projector, shapes, weight in (
    (hint, "linear", {"type": "linear"}, FLAT, None),
    (hint, "linear_places", {"type": "linear"}, ((5, 4, 1, 1), (5, 3, 1, 1)), None),
    (hint, "mlp_gelu", {"type": "mlp"}, FLAT, None),
    (hint, "mlp_relu", {"type": "mlp", "activation": "relu", "width": 3}, FLAT, WEIGHTS),
    (hint, "mlp_bare", {"type": "mlp", "bias": False, "normalise": "both"}, FLAT, None),
    (hint, "conv1x1", {"type": "conv1x1"}, FLAT, None),
    (hint, "conv1x1_bare", {"type": "conv1x1", "bias": False}, FLAT, WEIGHTS),
    (hint, "conv1x1_before", {"type": "conv1x1", "normalise": "before"}, FLAT, None),
    (hint, "conv1x1_after", {"type": "conv1x1", "normalise": "after"}, FLAT, None),
    (hint, "conv1x1_relu", {"type": "conv1x1", "output": "relu"}, FLAT, None),
    (hint, "conv", {"type": "conv"}, SMALL, None),
    (hint, "conv_bare", {"type": "conv", "bias": False}, SMALL, WEIGHTS),
    (hint, "conv_both", {"type": "conv", "normalise": "both"}, SMALL, None),
    (hint, "conv_gelu", {"type": "conv", "output": "gelu", "normalise": "after"}, SMALL, None),
    (hint, "conv_one", {"type": "conv"}, ONE, None),
    (hint, "conv_equal", {"type": "conv"}, FLAT, None),
    (hint, "frozen", {"type": "conv", "trainable": False}, SMALL, None),
    (vid, "conv", {"type": "conv"}, SMALL, None),
    (cosine, "linear", {"type": "linear", "normalise": "before"}, ROWS, None),
    (cosine, "mlp", {"type": "mlp", "activation": "relu", "output": "relu"}, ROWS, None),
):
    given = inputs(projector, *shapes, weight)
    trained = ["student", "log_variance"]
    if loss is vid:
        given["log_variance"] = normal(31, shapes[1][1])
    if projector.get("trainable", True):
        trained += [name for name in given if name.startswith("projector.")]
    row = (behind(loss), trained)
    CASES.append((loss.__name__, f"projector_{case}", {"projector": projector}, given, row))
