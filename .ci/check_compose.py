"""Checks env/docker_compose.yml without Docker, and that it, env/.env.example and src/ agree on variables and defaults.

Prints one line per fault and exits 1 if there is any.
"""

import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "env/docker_compose.yml"
EXAMPLE = ROOT / "env/.env.example"
PROMETHEUS = ROOT / "env/prometheus.yml"

# What the file uses of the Compose specification; a key that is not here is a typing error until it is added.
TOP_KEYS = {"name", "services", "volumes"}
SERVICE_KEYS = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "environment",
    "healthcheck",
    "image",
    "networks",
    "ports",
    "profiles",
    "read_only",
    "restart",
    "security_opt",
    "stop_grace_period",
    "tmpfs",
    "user",
    "volumes",
}
BUILD_KEYS = {"args", "context", "dockerfile"}
# What of a replica is its own; all else must be the same for all of them.
OWN_KEYS = {"environment", "networks", "ports", "profiles", "volumes"}
HEALTH_KEYS = {"interval", "retries", "start_period", "test", "timeout"}
# The files under src/config/arguments/ whose variables are for other commands.
NOT_OF_SERVE = {"dev", "stand_in", "verify"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}

faults = []


def fault(text):
    faults.append(text)


class Loader(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys; Compose refuses the file."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                fault(f"line {key.start_mark.line + 1}: {key.value} stands there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def known(where, mapping, keys):
    for key in mapping:
        if key not in keys:
            fault(f"{where}: {key} is not a known key")


def replicas_of(document):
    return {name: service for name, service in document["services"].items() if service.get("command") == ["serve"]}


def check_replicas(document):
    """The replicas differ in their names and logs, and in how they are reached, and in nothing else."""
    replicas = replicas_of(document)
    if len(replicas) != 3:
        fault(f"there are {len(replicas)} replicas: {sorted(replicas)}")
    first, *others = replicas.values()

    def common(service):
        shared = {key: value for key, value in service.items() if key not in OWN_KEYS}
        passed = {name: value for name, value in service["environment"].items() if name != "INSTANCE"}
        return shared, passed

    for other in others:
        if common(other) != common(first):
            fault(f"replicas differ: {common(other)} and {common(first)}")
    for what, of in [
        ("name", lambda service: service["environment"]["INSTANCE"]),
        ("log", lambda service: service["volumes"][0]),
    ]:
        if len({of(service) for service in replicas.values()}) != len(replicas):
            fault(f"two replicas have the same {what}")


def check_admin(document):
    """Whatever looks after a replica asks at ADMIN_LISTEN, whose connections no client can take."""
    replicas = replicas_of(document)
    for name, service in replicas.items():
        port = service["environment"]["ADMIN_LISTEN"].rsplit(":", 1)[-1]
        if not re.search(rf":{port}/readyz$", service["healthcheck"]["test"][-1]):
            fault(f"{name}.healthcheck: it does not ask for /readyz at the port {port} of ADMIN_LISTEN")
    admins = [f"balance-{number}:{port}" for number in range(1, len(replicas) + 1)]
    prometheus = yaml.safe_load(PROMETHEUS.read_text())
    if (targets := prometheus["scrape_configs"][0]["static_configs"][0]["targets"]) != admins:
        fault(f"prometheus.yml: it asks {targets}, not {admins}")
    environment = document["services"]["haproxy"]["environment"]
    if (asked := [environment.get(f"ADMIN_{number}") for number in range(1, len(replicas) + 1)]) != admins:
        fault(f"haproxy.environment: it asks {asked}, not {admins}")


def check_services(document):
    known("top level", [key for key in document if not key.startswith("x-")], TOP_KEYS)
    services = document["services"]
    volumes = document["volumes"]
    used_volumes = set()
    for name, service in services.items():
        known(name, service, SERVICE_KEYS)
        if ("build" in service) == ("image" in service):
            fault(f"{name}: it needs either build or image")
        if build := service.get("build"):
            known(f"{name}.build", build, BUILD_KEYS)
            context = COMPOSE.parent / build["context"]
            if not (context / build["dockerfile"]).is_file():
                fault(f"{name}.build: {build['dockerfile']} is not there")
        known(f"{name}.healthcheck", service.get("healthcheck", {}), HEALTH_KEYS)
        for other, how in service.get("depends_on", {}).items():
            known(f"{name}.depends_on.{other}", how, {"condition"})
            if other not in services:
                fault(f"{name}.depends_on: there is no service {other}")
            elif how["condition"] not in CONDITIONS:
                fault(f"{name}.depends_on.{other}: {how['condition']} is not a condition")
            elif how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                fault(f"{name}.depends_on.{other}: {other} has no healthcheck")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                if not (COMPOSE.parent / source).exists():
                    fault(f"{name}.volumes: {source} is not there")
                if not volume.endswith(":ro"):
                    fault(f"{name}.volumes: {source} of this repo could be written to")
            else:
                used_volumes.add(source)
        for key, value in service.get("environment", {}).items():
            if not isinstance(value, str):
                fault(f"{name}.environment.{key}: quote the value, it must reach the program as it is written")
        for port in service.get("ports", []):
            if not re.match(r"127\.0\.0\.1:|\$\{\w+:-127\.0\.0\.1:", port):
                fault(f"{name}.ports: {port} is offered to the whole network by default")
    if used_volumes != set(volumes):
        fault(f"volumes: {sorted(used_volumes)} are used and {sorted(volumes)} declared")


def read_example():
    """The variables of .env.example with their values, and those that are only shown, commented out."""
    documented = {}
    shown = set()
    for line in EXAMPLE.read_text().splitlines():
        if match := re.fullmatch(r"(# )?([A-Z][A-Z0-9_]*)=(.*)", line):
            off, name, value = match.groups()
            if name in documented:
                fault(f".env.example: {name} stands there twice")
            documented[name] = value
            if off:
                shown.add(name)
    return documented, shown


def read_sources():
    """The variables that src/ reads, each with its default or None."""
    read = {}
    for path in (ROOT / "src").rglob("*.rs"):
        text = path.read_text()
        # clap: `env = "NAME"` and, in the same attribute, `default_value = "…"` if there is one.
        for attribute in re.findall(r"#\[arg\((.*?)\)\]", text, re.DOTALL):
            if name := re.search(r'\benv = "(\w+)"', attribute):
                default = re.search(r'\bdefault_value = "([^"]*)"', attribute)
                read[name[1]] = default and default[1]
        for name in re.findall(r'\bvar(?:_os)?\("(\w+)"\)', text):
            read.setdefault(name, None)
    # They are the system's.
    for name in ("PATH", "TERM", "LD_LIBRARY_PATH", "XDG_CACHE_HOME"):
        read.pop(name, None)
    return read


def check_variables(document, text, documented, shown):
    uncommented = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    # `$$` is a dollar sign for the container's shell.
    used = re.findall(r"(?<!\$)\$(\{[^}]*\}|\w+)", uncommented)
    names = set()
    for use in used:
        match = re.fullmatch(r"\{([A-Z][A-Z0-9_]*):-([^}]*)\}", use)
        if not match:
            fault(f"${use}: write ${{NAME:-default}}, so that nothing has to be set")
            continue
        name, default = match.groups()
        names.add(name)
        if name not in documented:
            fault(f"{name} is not in .env.example")
        elif documented[name] != default:
            fault(f"{name}: the default is {default} in docker_compose.yml and {documented[name]} in .env.example")

    sources = read_sources()
    for name, default in sources.items():
        if name not in documented:
            fault(f"{name}, which src/ reads, is not in .env.example")
        elif default is not None and name in shown:
            fault(f"{name}: the default is {default} in src/ and commented out in .env.example")
        elif default is not None and documented[name] != default:
            fault(f"{name}: the default is {default} in src/ and {documented[name]} in .env.example")
    for name in sorted(set(documented) - names - set(sources)):
        fault(f"{name} is in .env.example, and nobody reads it")

    for path in sorted((ROOT / "src/config/arguments").glob("*.rs")):
        if path.stem in NOT_OF_SERVE:
            continue
        for name in re.findall(r'\benv = "(\w+)"', path.read_text()):
            for replica, service in replicas_of(document).items():
                if name not in service["environment"]:
                    fault(f"{name}, which `serve` reads, is not passed to the service {replica}")
    return names, sources


def main():
    text = COMPOSE.read_text()
    document = yaml.load(text, Loader)
    check_services(document)
    check_replicas(document)
    check_admin(document)
    documented, shown = read_example()
    names, sources = check_variables(document, text, documented, shown)
    for line in faults:
        print(line)
    if faults:
        sys.exit(1)
    print(
        f"{len(document['services'])} services; variables: {len(documented)} documented, {len(names)} used by Compose, "
        f"{len(sources)} read by src/"
    )


main()
