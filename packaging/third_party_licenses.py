#!/usr/bin/env python3
"""Writes packaging/third-party-licenses.txt: whose code is linked into the program, and the texts of its licences.

    packaging/third_party_licenses.py            writes it
    packaging/third_party_licenses.py --check    fails if it is not current

Packages and image carry the file: nearly every licence wants its text and its authors' names to go with the program. It
is in the repository because the image is built without Python. It names no versions, so that most updates change nothing
in it; the bill of materials has them. Needs the network only for what `cargo fetch --locked` has not fetched.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import textwrap
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "packaging" / "third-party-licenses.txt"
TEXTS = re.compile(r"(un)?licen[cs]e|copying|copyright|notice", re.IGNORECASE)
RULE = "=" * 80
HEAD = """\
Third-party software in opsramp-exporter
========================================

opsramp-exporter is under the Apache License 2.0. The program contains the Rust
libraries that are listed here, each under the licence beside it. Where that
names several with "OR" or "/", each may be chosen. The texts of all of them
follow.

It also contains

- SQLite, as part of libsqlite3-sys. Its authors have put it into the public
  domain: "May you do good and not evil. May you find forgiveness for yourself
  and forgive others. May you share freely, never taking more than you give."
- Rust's standard library, copyright (c) The Rust Project Contributors, under
  MIT OR Apache-2.0. COPYRIGHT-library.html, which comes with Rust, names what
  it consists of.
"""


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def linked():
    """What the program consists of on any of the targets that we build for, as (name, version)."""
    targets = tomllib.loads((ROOT / "deny.toml").read_text(encoding="utf-8"))["graph"]["targets"]
    options = [option for target in targets for option in ("--target", target)]
    # Macros and build scripts run while the program is built, and are not in it.
    edges = ["--edges", "normal,no-proc-macro"]
    lines = cargo("tree", "--locked", *edges, "--prefix", "none", "--format", "{p}", *options).splitlines()
    return {tuple(line.split()[:2]) for line in lines if line}


def read(path):
    """A text without what editors disagree about: ends of lines, and blanks before them."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = [line.rstrip() for line in text.replace("\f", "\n").splitlines()]
    return "\n".join(lines).strip("\n")


def made():
    names = linked()
    licences = collections.defaultdict(list)
    # By their words: two that differ in nothing but their lines are one.
    texts = {}
    users = collections.defaultdict(list)
    packages = json.loads(cargo("metadata", "--locked", "--format-version", "1"))["packages"]
    for package in sorted(packages, key=lambda package: (package["name"], package["version"])):
        # Our own has no source.
        if (package["name"], f"v{package['version']}") not in names or package["source"] is None:
            continue
        name, licence = package["name"], package["license"] or "see its text"
        folder = pathlib.Path(package["manifest_path"]).parent
        # Those of parts that a crate has taken over from others are in folders below.
        files = sorted(
            path for path in folder.rglob("*") if TEXTS.match(path.name) and path.suffix != ".rs" and path.is_file()
        )
        if not files:
            # That is ours, too, and says the same whoever uses it.
            if "Apache-2.0" not in licence:
                sys.exit(f"{name} ({licence}) brings no text of its licence, and none is known")
            licence += " (brings no text of it)"
        if licence not in licences[name]:
            licences[name].append(licence)
        for path in files:
            text = read(path)
            words = " ".join(text.split())
            texts.setdefault(words, text)
            if name not in users[words]:
                users[words].append(name)
    parts = [HEAD, *(f"{name}: {'; '.join(licence)}" for name, licence in licences.items()), ""]
    for words, text in texts.items():
        whose = textwrap.fill(f"Of {', '.join(users[words])}:", 80, break_on_hyphens=False)
        parts += [RULE, whose, "", text, ""]
    return "\n".join(parts)


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    content = made()
    if not sys.argv[1:]:
        FILE.write_text(content, encoding="utf-8")
    elif FILE.read_text(encoding="utf-8") != content:
        sys.exit(f"{FILE.relative_to(ROOT)} is not current: run packaging/third_party_licenses.py")


if __name__ == "__main__":
    main()
