"""The manifests: valid by Kubernetes' schemas, Pod Security "restricted", closed but for what is named."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines.site import PART_OF

K8S = Path(__file__).parents[2] / "k8s"
OLDEST = "1.30"
OURS = {"app.kubernetes.io/part-of": "cmapkd"}
Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def kubectl(folder: Path) -> list[Manifest]:
    """What an overlay becomes."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed: the files are checked one by one only")
    built = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
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


def may(manifests: list[Manifest], source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Whether the policies let a pod of the namespace call another one on a port, out and in."""

    def opens(direction: str, side: str, one: dict[str, str], other: dict[str, str]) -> bool:
        rules = [
            rule
            for policy in manifests
            if policy["kind"] == "NetworkPolicy" and selects(policy["spec"]["podSelector"], one)
            for rule in policy["spec"].get(direction, [])
        ]
        return any(
            (not rule.get("ports") or port in [p["port"] for p in rule["ports"]])
            and any(
                "podSelector" in peer and "namespaceSelector" not in peer and selects(peer["podSelector"], other)
                for peer in rule.get(side, [])
            )
            for rule in rules
        )

    return opens("egress", "to", source, target) and opens("ingress", "from", target, source)


NAME = "app.kubernetes.io/name"
STAGE = {**OURS, "pipelines.kubeflow.org/v2_component": "true"}
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
    ranks = {**OURS, "jobset.sigs.k8s.io/jobset-name": "job"}
    assert may(EVERY, ranks, ranks, 29500)
    assert not may(EVERY, STAGE, STAGE, 29500)


def test_rights_are_named_one_by_one() -> None:
    for role in (manifest for manifest in EVERY if manifest["kind"] == "Role"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert rule["resources"] != ["secrets"] or rule["resourceNames"]
    assert not [manifest for manifest in EVERY if manifest["kind"].startswith("Cluster")]


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_an_overlay_builds_and_is_valid(overlay: str) -> None:
    built = kubectl(K8S / "overlays" / overlay)
    for manifest in built:
        kubernetes_validate.validate(manifest, OLDEST, strict=True)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "cmapkd"
    for name, template in pods(built):
        check_pod(name, template)
    kinds = {manifest["kind"] for manifest in built}
    assert kinds >= {
        "Namespace",
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "ResourceQuota",
        "LimitRange",
        "NetworkPolicy",
    }
    names = {name for name, _ in pods(built)}
    dev = {"Deployment/mlflow", "StatefulSet/postgres", "StatefulSet/s3", "Job/make-bucket"}
    assert names == (dev if overlay == "dev" else set())
    images = [c["image"] for _, template in pods(built) for c in template["spec"]["containers"]]
    assert "cmapkd" not in images


def test_prod_with_all_components_has_every_image_by_digest_and_its_own_addresses(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s" / "overlays" / "prod" / "kustomization.yaml"
    text = file.read_text().replace("# components:", "components:")
    text = re.sub(r"^#   - ../../components", "  - ../../components", text, flags=re.MULTILINE)
    file.write_text(text.replace("# - path: identity", "- path: identity"))
    built = kubectl(file.parent)
    images = [c["image"] for _, template in pods(built) for c in template["spec"]["containers"]]
    assert images
    assert all(re.search(r"@sha256:[0-9a-f]{64}$", image) for image in images)
    assert {m["metadata"]["name"] for m in built if m["kind"] == "Role"} == {"cmapkd-runner", "cmapkd-trainjobs"}
    account = next(m for m in built if m["kind"] == "ServiceAccount")
    assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
    api = next(m for m in built if m["metadata"]["name"] == "runs-to-kubernetes")
    assert [peer["ipBlock"]["cidr"] for peer in api["spec"]["egress"][0]["to"]] == ["192.0.2.30/32"]
    quota = next(m for m in built if m["kind"] == "ResourceQuota")["spec"]["hard"]
    assert (quota["requests.nvidia.com/gpu"], quota["pods"]) == ("32", "100")
