"""Directories that are there whole or not at all, and know what is in them."""

import contextlib
import hashlib
import json
import os
import shutil

MANIFEST = "SOURCE.json"


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_dir(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rules(*names):
    """A hash of the files of this folder that decide what comes out."""
    digest = hashlib.sha256()
    for name in names:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def finished(out, recipe):
    """True when `out` was made by this very recipe and every file still has its hash; None when
    there is nothing, or an untouched result that differs only in `rules`, which publish() replaces;
    a message that names the difference otherwise."""
    if not os.path.lexists(out) or (os.path.isdir(out) and not os.listdir(out)):
        return None
    try:
        with open(os.path.join(out, MANIFEST), encoding="utf-8") as file:
            manifest = json.load(file)
        made, files = manifest["recipe"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{out}: found a directory without {MANIFEST}, expected nothing or an earlier result"
    keys = [key for key in {**recipe, **made} if recipe.get(key) != made.get(key)]
    if keys not in ([], ["rules"]):
        return (f"{out}: made with {keys[0]} {made.get(keys[0])!r}, "
                f"now asked for {recipe.get(keys[0])!r}; use another --out")
    for name, facts in files.items():
        path = os.path.join(out, name)
        if not os.path.isfile(path):
            return (f"{path}: found none, expected {facts['bytes']} bytes; "
                    f"remove {out} and run again")
        found = file_sha256(path)
        if found != facts["sha256"]:
            return (f"{path}: found sha256 {found}, expected {facts['sha256']}; "
                    f"remove {out} and run again")
    return None if keys else True


@contextlib.contextmanager
def publish(out, recipe):
    """Gives a staging directory; on success writes the manifest, syncs, and renames it to `out`.
    Call finished() first: what stands at `out` is replaced."""
    out = os.path.abspath(out)
    os.makedirs(os.path.dirname(out), exist_ok=True)
    staging = f"{out}.staging-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    os.mkdir(staging)
    try:
        yield staging
        names = sorted(os.listdir(staging))
        for name in names:
            os.chmod(os.path.join(staging, name), 0o644)  # safetensors writes 0600
        files = {name: {"bytes": os.path.getsize(os.path.join(staging, name)),
                        "sha256": file_sha256(os.path.join(staging, name))} for name in names}
        with open(os.path.join(staging, MANIFEST), "w", encoding="utf-8") as file:
            json.dump({"recipe": recipe, "files": files}, file, indent=2)
            file.write("\n")
        for name in [*names, MANIFEST]:
            with open(os.path.join(staging, name), "rb") as file:
                os.fsync(file.fileno())
        sync_dir(staging)
        old = f"{out}.old-{os.getpid()}"
        if os.path.lexists(out):
            os.rename(out, old)
        os.rename(staging, out)
        sync_dir(os.path.dirname(out))
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
