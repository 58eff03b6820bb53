"""English documentation out of Debian packages, fetched by apt, unpacked by dpkg-deb, no root."""

import glob
import os
import re
import subprocess

from gguf_to_hf import Refused
from publish import file_sha256

# package -> where its English pages are, its licence, and the perplexity of SmolLM2-135M-Instruct
# (Q4_1) on five documents of it, about 2,000 tokens, give or take 7 %.
PACKAGES = {
    "anarchism": ("usr/share/doc/anarchism/html/*.html", "GPL-2", 22.1),
    "debian-handbook": ("usr/share/doc/debian-handbook/html/en-US/*.html",
                        "GPL-2+ or CC-BY-SA-3.0", 22.8),
    "debian-history": ("usr/share/doc/debian-history/docs/*.en.html", "GPL-2+", 17.5),
    "debian-policy": ("usr/share/doc/debian-policy/policy.html/*.html", "GPL-2+", 30.8),
    "debian-reference-en": ("usr/share/debian-reference/*.en.html", "GPL-2+", 24.3),
    "developers-reference": ("usr/share/developers-reference/*.html", "GPL-2+", 18.4),
    "git-doc": ("usr/share/doc/git-doc/*.html", "GPL-2", 24.9),
    "mh-book": ("usr/share/doc/mh-book/html/*/*.htm*", "GPL-2+", 23.9),
    "postgresql-doc-15": ("usr/share/doc/postgresql-doc-15/html/*.html", "PostgreSQL", 18.4),
    "python3.11-doc": ("usr/share/doc/python3.11/html/*/*.html", "PSF-2", 19.7),
    "sqlite3-doc": ("usr/share/doc/sqlite3/*.html", "public domain", 23.4),
}

# Long-form argument and two technical manuals: 22 MB to fetch, 4 million tokens.
# As root apt drops to a user of its own, who may not write to our cache, and warns about it.
AS_ROOT = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []

DEFAULT = ("anarchism", "postgresql-doc-15", "python3.11-doc")


def apt_get(cache, *arguments):
    return subprocess.run(["apt-get", "--quiet", *AS_ROOT, *arguments], cwd=cache, check=False,
                          stdout=subprocess.DEVNULL).returncode == 0


def download(package, cache):
    """Where the system has no lists of packages, as in a container's image, or old ones, with our own."""
    if apt_get(cache, "download", package):
        return True
    lists = os.path.join(os.path.abspath(cache), "lists")
    own = ("-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={lists}")
    os.makedirs(os.path.join(lists, "partial"), exist_ok=True)
    return apt_get(cache, *own, "update") and apt_get(cache, *own, "download", package)


def archive_of(package, cache):
    """The package's file in the cache, downloaded if there is none.  One that is there stays: the
    same cache gives the same text after Debian has moved on."""
    pattern = os.path.join(glob.escape(cache), f"{package}_*.deb")
    found = sorted(glob.glob(pattern))
    if not found:
        os.makedirs(cache, exist_ok=True)
        if not download(package, cache):
            raise Refused(f"{package}: apt-get could not download it; put its .deb into {cache}")
        found = sorted(glob.glob(pattern))
    if len(found) != 1:
        raise Refused(f"{pattern}: found {len(found)} files, expected 1")
    return found[0]


def pages(package, cache):
    """(facts about the package, its pages as text in the order of their names)."""
    if package not in PACKAGES:
        raise Refused(f"{package}: expected one of {' '.join(sorted(PACKAGES))}")
    where, licence, _ = PACKAGES[package]
    archive = archive_of(package, cache)
    digest = file_sha256(archive)
    tree = os.path.join(cache, f"{package}-{digest[:16]}")
    if not os.path.isdir(tree):
        staging = f"{tree}.staging-{os.getpid()}"
        subprocess.run(["dpkg-deb", "-x", archive, staging], check=True)
        os.rename(staging, tree)
    paths = sorted(glob.glob(os.path.join(glob.escape(tree), where)))
    if not paths:
        raise Refused(f"{archive}: found no {where}, expected the package's pages there")
    version = re.fullmatch(r".*_(.*)_.*\.deb", os.path.basename(archive))[1].replace("%3a", ":")
    return ({"package": package, "version": version, "sha256": digest, "licence": licence},
            [read(path) for path in paths])


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
