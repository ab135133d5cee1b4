"""Checks what schemas cannot: that the objects for Kubernetes name each other rightly and ask for no more than they need.

Takes the file that `kubectl kustomize` wrote. Prints one line per fault and exits 1 if there is any.
"""

import sys
from pathlib import Path

import yaml

# Kept out of the kustomization: see env/kubernetes/secret.example.yaml.
SECRETS = {"balance", "balance-migrate"}

faults = []


def fault(text):
    faults.append(text)


def contains(labels, selector):
    return selector.items() <= labels.items()


def milliseconds(config, *names):
    return sum(int(config[name]) for name in names)


def check_container(where, pod, container):
    security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
    expected = {
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for name, value in expected.items():
        if security.get(name) != value:
            fault(f"{where}: {name} is {security.get(name)}")
    if ":" not in container["image"].rsplit("/", 1)[-1]:
        fault(f"{where}: the image {container['image']} has no tag")
    resources = container.get("resources", {})
    if "memory" not in resources.get("limits", {}) or "cpu" not in resources.get("requests", {}):
        fault(f"{where}: no limit on memory, or no request for a processor")


def check_pod(where, pod, config_maps):
    if pod.get("automountServiceAccountToken") is not False:
        fault(f"{where}: it gets a token of the cluster that it never uses")
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"] + pod.get("initContainers", []):
        check_container(f"{where}/{container['name']}", pod, container)
        for source in container.get("envFrom", []):
            if source["configMapRef"]["name"] not in config_maps:
                fault(f"{where}: there is no ConfigMap {source['configMapRef']['name']}")
        for variable in container.get("env", []):
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            if secret and secret["name"] not in SECRETS:
                fault(f"{where}: there is no Secret {secret['name']}")
    for volume in pod.get("volumes", []):
        if "configMap" in volume and volume["configMap"]["name"] not in config_maps:
            fault(f"{where}: there is no ConfigMap {volume['configMap']['name']}")
    return volumes


def check_workload(workload, objects, config_maps):
    name = f"{workload['kind']}/{workload['metadata']['name']}"
    template = workload["spec"]["template"]
    pod = template["spec"]
    volumes = check_pod(name, pod, config_maps)
    volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    for container in pod["containers"] + pod.get("initContainers", []):
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                fault(f"{name}: there is no volume {mount['name']}")
    if workload["kind"] == "Job":
        return
    labels = template["metadata"]["labels"]
    container = pod["containers"][0]
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if probe not in container:
            fault(f"{name}: no {probe}")
    config = config_maps[container["envFrom"][0]["configMapRef"]["name"]]
    check_admin(name, template, container, config, objects)
    needed = milliseconds(config, "SHUTDOWN_DELAY_MS", "SHUTDOWN_TIMEOUT_MS", "OPERATION_TIMEOUT_MS") + 2_000
    if pod["terminationGracePeriodSeconds"] * 1_000 <= needed:
        fault(f"{name}: terminationGracePeriodSeconds is less than the {needed} ms that stopping may take")
    for kind, path in (("Service", ["selector"]), ("PodDisruptionBudget", ["selector", "matchLabels"])):
        for other in objects:
            if other["kind"] == kind:
                selector = other["spec"]
                for step in path:
                    selector = selector[step]
                if not contains(labels, selector):
                    fault(f"{kind}/{other['metadata']['name']} selects none of the pods of {name}")
    for other in objects:
        if other["kind"] == "HorizontalPodAutoscaler":
            target = other["spec"]["scaleTargetRef"]
            if f"{target['kind']}/{target['name']}" != name:
                fault(f"the autoscaler is for {target['kind']}/{target['name']}, not for {name}")


def check_admin(name, template, container, config, objects):
    """Probes and scrapes go to ADMIN_LISTEN, whose connections no client can take."""
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for port, variable in (("http", "LISTEN"), ("admin", "ADMIN_LISTEN")):
        if config.get(variable) != f"0.0.0.0:{ports.get(port)}":
            fault(f"{name}: {variable} is {config.get(variable)}, and the port {port} {ports.get(port)}")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if (port := container.get(probe, {}).get("httpGet", {}).get("port")) != "admin":
            fault(f"{name}: {probe} asks at the port {port}, not at admin")
    if (port := template["metadata"]["annotations"]["prometheus.io/port"]) != str(ports.get("admin")):
        fault(f"{name}: Prometheus is sent to the port {port}")
    for other in objects:
        if other["kind"] == "Service" and any(port["targetPort"] == "admin" for port in other["spec"]["ports"]):
            fault(f"Service/{other['metadata']['name']} leads clients to the port admin")
        if other["kind"] == "NetworkPolicy":
            rules = [rule for rule in other["spec"]["ingress"] if any(port["port"] == "admin" for port in rule["ports"])]
            if not rules or {"namespaceSelector": {}} in [source for rule in rules for source in rule.get("from", [])]:
                fault(f"NetworkPolicy/{other['metadata']['name']}: nobody, or everybody, may reach the port admin")


def main():
    objects = [one for one in yaml.safe_load_all(Path(sys.argv[1]).read_text()) if one]
    config_maps = {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
    workloads = [one for one in objects if one["kind"] in ("Deployment", "StatefulSet", "Job")]
    if len(workloads) != 2:
        fault(f"{len(workloads)} workloads in place of the replicas and the migration")
    for workload in workloads:
        check_workload(workload, objects, config_maps)
    for line in faults:
        print(line)
    if faults:
        sys.exit(1)


main()
