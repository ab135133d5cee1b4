"""Holds the crates that this one is built from against .deny.toml: licenses, bans and sources, as `cargo deny check` does.

For machines where cargo-deny is not installed, which takes minutes to compile. Needs Python 3.11 and nothing else; reads
what `cargo metadata` says and asks nobody. Prints one line per fault and exits 1 if there is any. Not checked here: the
advisories, the texts of the licenses, and duplicates, which only warn.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

# The crates that are known to be unmaintained, since nobody is asked here.
UNMAINTAINED = {"backoff": "RUSTSEC-2025-0012", "instant": "RUSTSEC-2024-0384"}

ROOT = Path(__file__).resolve().parent.parent


def metadata(targets):
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--all-features"]
    command += [f"--filter-platform={target}" for target in targets]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)


def allowed_for(crate, licenses):
    """The licenses that a crate may have: those of all, and its own exceptions."""
    exceptions = licenses.get("exceptions", [])
    own = [license for exception in exceptions if exception["crate"] == crate for license in exception["allow"]]
    return set(licenses["allow"]) | set(own)


def is_allowed(expression, allowed):
    """Whether an SPDX expression can be met with these licenses: any side of an OR, both of an AND. The slash of old
    manifests is an OR."""
    tokens = re.findall(r"[()/]|[^\s()/]+", expression)

    def alternatives():
        met = conjunction()
        while tokens and tokens[0] in ("OR", "/"):
            tokens.pop(0)
            met = conjunction() or met
        return met

    def conjunction():
        met = term()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            met = term() and met
        return met

    def term():
        token = tokens.pop(0)
        if token == "(":
            met = alternatives()
            if tokens.pop(0) != ")":
                raise ValueError(expression)
            return met
        if tokens and tokens[0] == "WITH":
            token = " ".join([token, tokens.pop(0), tokens.pop(0)])
        return token in allowed

    met = alternatives()
    if tokens:
        raise ValueError(expression)
    return met


def faults_of(package, policy):
    name = f"{package['name']} {package['version']}"
    expression = package["license"]
    if not expression:
        yield f"{name}: its manifest names no license"
    elif not is_allowed(expression, allowed_for(package["name"], policy["licenses"])):
        yield f"{name}: {expression} is not allowed"
    for ban in policy["bans"]["deny"]:
        if ban["crate"] == package["name"]:
            yield f"{name} is banned: {ban['reason']}"
    source = package["source"]
    if source is None:
        for dependency in package["dependencies"]:
            if policy["bans"]["wildcards"] == "deny" and dependency["req"] == "*":
                yield f"{name}: any version of {dependency['name']} will do"
    elif source.removeprefix("registry+") not in policy["sources"]["allow-registry"]:
        yield f"{name}: it is from {source}"


def main():
    policy = tomllib.loads((ROOT / ".deny.toml").read_text())
    found = metadata(policy["graph"]["targets"])
    used = {node["id"] for node in found["resolve"]["nodes"]}
    packages = [package for package in found["packages"] if package["id"] in used]
    faults = [fault for package in packages for fault in faults_of(package, policy)]
    exceptions = {ignored["id"]: ignored["reason"] for ignored in policy["advisories"]["ignore"]}
    names = {package["name"] for package in packages}
    for crate, advisory in UNMAINTAINED.items():
        if (crate in names) != (advisory in exceptions):
            faults.append(f"{advisory}: {crate} and its exception with a reason go together")
    for fault in faults:
        print(fault)
    if faults:
        sys.exit(1)
    print(f"{len(packages)} crates: licenses, bans and sources are as .deny.toml says")


if __name__ == "__main__":
    main()
