"""What check.sh says of the manifests: check.py MANIFESTS FOLDER CONFIG, where CONFIG is written."""

import pathlib
import re
import sys
import tomllib

import kubernetes_validate
import yaml

# The oldest release that most clouds still run, and the newest schema.
VERSIONS = ["1.30", "1.37.0"]

manifests_path, folder, config_path = map(pathlib.Path, sys.argv[1:])
documents = list(yaml.safe_load_all(manifests_path.read_text()))
# What the kustomization does not name: a site has its own.
secret = yaml.safe_load((folder / "secret.example.yaml").read_text())
policy = yaml.safe_load((folder / "networkpolicy.yaml").read_text())
kustomization = (folder / "kustomization.yaml").read_text()
wrong = []


def expect(holds, message):
    if not holds:
        wrong.append(message)


def only(kind):
    found = [document for document in documents if document["kind"] == kind]
    expect(len(found) == 1, f"{len(found)} of kind {kind}")
    return found[0]


for document in [*documents, secret, policy]:
    if document["kind"] == "PodMonitor":
        continue
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            wrong.append(f"{document['kind']}, Kubernetes {version}: {str(error).splitlines()[0]}")

deployment, service, budget, monitor, config = map(
    only, ["Deployment", "Service", "PodDisruptionBudget", "PodMonitor", "ConfigMap"]
)
pod = deployment["spec"]["template"]
container = pod["spec"]["containers"][0]
labels = pod["metadata"]["labels"]
ports = {port["name"]: port["containerPort"] for port in container["ports"]}

# Whoever selects pods selects these.
for what, selector in [
    ("Deployment", deployment["spec"]["selector"]["matchLabels"]),
    ("Service", service["spec"]["selector"]),
    ("PodDisruptionBudget", budget["spec"]["selector"]["matchLabels"]),
    ("PodMonitor", monitor["spec"]["selector"]["matchLabels"]),
    ("NetworkPolicy", policy["spec"]["podSelector"]["matchLabels"]),
    *(("topologySpreadConstraints", spread["labelSelector"]["matchLabels"]) for spread in pod["spec"]["topologySpreadConstraints"]),
]:
    expect(selector and selector.items() <= labels.items(), f"{what} selects {selector}, but pods have {labels}")
for port in service["spec"]["ports"]:
    expect(port["targetPort"] in ports, f"the service leads to port {port['targetPort']}")
for name in ["startupProbe", "livenessProbe", "readinessProbe"]:
    probe = container[name]["httpGet"]
    expect(probe["port"] in ports, f"{name} asks port {probe['port']}")
    expect(probe["path"] == ("/-/ready" if name == "readinessProbe" else "/-/healthy"), f"{name} asks {probe['path']}")
# Counted is what may go, not what must stay: that holds for one replica, too.
expect(budget["spec"].get("maxUnavailable") == 1, "another number of pods than one may be moved at a time")
expect(budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow", "pods that are not ready cannot be moved")
expect(policy["spec"]["policyTypes"] == ["Ingress"], "the way out of the pods is closed")
for rule in policy["spec"]["ingress"]:
    expect([port["port"] for port in rule["ports"]] == ["http"], f"NetworkPolicy: {rule['ports']}")
    # A rule without it lets everybody in.
    expect(rule.get("from"), "NetworkPolicy: from everywhere")
expect(re.search(r"^  (# )?- networkpolicy\.yaml$", kustomization, re.MULTILINE), "the kustomization does not know the network policy")

# The image that people build of this source.
version = tomllib.loads((folder.parent / "Cargo.toml").read_text())["package"]["version"]
tags = [image["newTag"] for image in yaml.safe_load(kustomization)["images"]]
expect(tags == [version], f"the image's tag is {tags}, the version {version}")

# The Prometheus Operator's schema is not among those of Kubernetes.
expect(monitor["apiVersion"] == "monitoring.coreos.com/v1", "PodMonitor: apiVersion")
known = {"jobLabel", "selector", "podMetricsEndpoints"}
expect(monitor["spec"].keys() == known, f"PodMonitor: {monitor['spec'].keys() ^ known}")
expect(labels.get(monitor["spec"]["jobLabel"]) == "opsramp-exporter", "the rules expect another job")
for endpoint in monitor["spec"]["podMetricsEndpoints"]:
    expect(endpoint.keys() <= {"port", "path", "interval", "honorLabels"}, f"PodMonitor: {endpoint}")
    # Of the Operator's labels (namespace, pod, container, endpoint, job, instance), one is the exporter's too.
    expect(endpoint.get("honorLabels") is True, "PodMonitor: the exporter's label `endpoint` becomes exported_endpoint")
    expect(endpoint["port"] in ports, f"PodMonitor asks port {endpoint['port']}")
    expect(re.fullmatch(r"(\d+(ms|s|m|h))+", endpoint["interval"]), f"PodMonitor: {endpoint['interval']}")

# As the restricted Pod Security Standard wants it, and a root that cannot be written to.
security = pod["spec"]["securityContext"]
expect(security["runAsNonRoot"] and security["runAsUser"] > 0, "runs as root")
expect(security["seccompProfile"]["type"] == "RuntimeDefault", "no seccomp profile")
confined = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
expect(container["securityContext"] == confined, f"securityContext: {container['securityContext']}")
expect(pod["spec"]["automountServiceAccountToken"] is False, "has a token of the cluster")

# Files that the configuration names are keys of the secret, where it is mounted.
volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
expect(volumes.keys() == mounts.keys(), "volumes and mounts differ")
expect(volumes["secret"]["secret"]["secretName"] == secret["metadata"]["name"], "another secret is mounted")
expect(volumes["config"]["configMap"]["name"] == config["metadata"]["name"], "another configuration is mounted")
text = config["data"]["config.yml"]
named = {path for path in re.findall(r"_file: (\S+)", text)}
held = {f"{mounts['secret']}/{key}" for key in secret["stringData"]}
expect(named == held, f"configuration and secret differ: {named ^ held}")
variables = {variable["name"]: variable["value"] for variable in container["env"]}
expect(variables["OPSRAMP_EXPORTER_CONFIG_FILE"] == f"{mounts['config']}/config.yml", "another file is read")

# For the program itself, with files that are here.
work = config_path.parent
for key, value in secret["stringData"].items():
    (work / key).write_text(value + "\n")
config_path.write_text(text.replace(mounts["secret"], str(work)))

if wrong:
    sys.exit("\n".join(wrong))
