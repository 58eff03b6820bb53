"""wheels.py - packages out of a folder of wheels, where nothing can be installed."""

import atexit
import contextlib
import glob
import importlib.util
import os
import shutil
import sys
import tempfile
import types
import zipfile


def use(folder):
    """Puts the folder's wheels before what is installed: unpacked, for Liger does not run out of a zip."""
    unpacked = tempfile.mkdtemp(prefix="kd-wheels-")
    atexit.register(shutil.rmtree, unpacked, ignore_errors=True)
    for wheel in glob.glob(os.path.join(folder, "*.whl")):
        zipfile.ZipFile(wheel).extractall(unpacked)
    sys.path.insert(0, unpacked)


def trl_divergence():
    """TRL's chunked divergence alone: its kernels need torch and Triton, all of TRL a dozen packages."""
    if "trl" not in sys.modules:
        spec = importlib.util.find_spec("trl")
        if spec is None:
            raise ImportError("no wheel of TRL")
        for name, path in (("trl", spec.submodule_search_locations), ("trl.trainer", [])):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = list(path)
        utils = sys.modules["trl.trainer.utils"] = types.ModuleType("trl.trainer.utils")
        utils.maybe_gather_lm_head_ctx = lambda *_: contextlib.nullcontext()  # DeepSpeed's shards: none
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    return ChunkedDivergenceFunction.apply
