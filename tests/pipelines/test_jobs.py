"""Whose a TrainJob is: what a retry finds of the attempt before, and what becomes of a job with another image."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from kubernetes_stub import Kubernetes

from cmapkd.pipelines import jobs, trainjob
from cmapkd.pipelines.jobs import JobError, JobGone, Jobs
from cmapkd.pipelines.site import Pod, Secret, Site, Toleration

POD = Pod(gpus=8, hours=3.0, nodes=2)
SITE = Site(image="registry.test/cmapkd@sha256:1", secrets=(Secret("s3", {"AWS_SECRET_ACCESS_KEY": "key"}),))
COMMAND = ["torchrun", "--nproc-per-node", "8", "--shutdown-timeout", "25", "-m", "--", "some_stage"]
ARGS = ["--recipe", "tiny", "--run", "r"]


def described(image: str = SITE.image, site: Site = SITE, **pod: Any) -> dict[str, Any]:
    return trainjob.in_image(json.loads(trainjob.describe(site, dataclasses.replace(POD, **pod))), image)


def start(job: dict[str, Any] | None = None, args: list[str] = ARGS) -> tuple[str, bool]:
    return trainjob.start(Jobs(trainjob._client()), job or described(), COMMAND, args)


def owners(cluster: Kubernetes) -> list[str]:
    (job,) = cluster.jobs()
    return [one["uid"] for one in job["metadata"].get("ownerReferences", [])]


def test_a_job_belongs_to_the_pod_that_made_it(cluster: Kubernetes) -> None:
    start()
    assert cluster.jobs()[0]["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "first", "uid": "uid-first"}  # and asks for no right on finalizers
    ]


def test_a_pod_that_starts_its_container_again_goes_on_with_its_job(cluster: Kubernetes) -> None:
    name, _ = start()
    assert start() == (name, True)
    assert owners(cluster) == ["uid-first"]


def test_a_retry_takes_over_the_job_of_a_pod_that_has_ended(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name, _ = start()
    cluster.ends("first")
    cluster.launcher("second", monkeypatch)
    assert start() == (name, True)
    assert owners(cluster) == ["uid-second"]
    assert "still runs since an earlier attempt: waiting for it" in capfd.readouterr().out
    cluster.collect("first")  # its workflow is cleaned up
    assert cluster.jobs()
    cluster.collect("second")
    assert not cluster.jobs()


@pytest.mark.parametrize("collected", [True, False])
def test_a_retry_waits_for_a_job_that_is_deleted_and_for_its_pods_and_makes_it_anew(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch, collected: bool
) -> None:
    """The pod before was deleted: the garbage collector has been there, or is on its way."""
    name, _ = start()
    cluster.launcher("second", monkeypatch)
    if collected:
        cluster.collect("first")
    else:
        cluster.jobs()[0]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert start() == (name, True)
    assert owners(cluster) == ["uid-second"]


def test_a_job_that_has_ended_is_made_anew(cluster: Kubernetes) -> None:
    name, _ = start()
    cluster.looks = 9
    assert start() == (name, True)
    assert cluster.deleted == [name]
    assert cluster.looks <= 1


def test_a_job_that_another_living_pod_follows_stays_that_pod_s(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name, _ = start()
    cluster.launcher("other", monkeypatch)
    assert start() == (name, False)
    assert owners(cluster) == ["uid-first"]
    assert f"TrainJob {name} runs already, for pod first: waiting for it" in capfd.readouterr().out


def test_a_pod_that_has_the_name_of_the_one_before_is_not_taken_for_it(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _ = start()
    cluster.launchers["first"]["metadata"]["uid"] = "uid-of-a-namesake"
    cluster.launcher("second", monkeypatch)
    assert start() == (name, True)


def test_without_a_pod_s_name_nobody_owns_the_job_and_it_is_said(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name, _ = start()
    cluster.ends("first")
    monkeypatch.delenv("KFP_POD_UID")
    assert start() == (name, True)
    assert owners(cluster) == []  # the pod that has ended would take it along
    assert "KFP_POD_NAME and KFP_POD_UID are not set" in capfd.readouterr().out
    cluster.vanish(name)
    assert start() == (name, True)
    assert owners(cluster) == []


CHANGES: list[dict[str, Any]] = [
    {"gpus": 4},
    {"cpu": "32"},
    {"memory": "1Gi"},
    {"nodes": 3},
    {"shm": "1Gi"},
    {"scratch": "9Gi"},
    {"hours": 9.0},
    {"node_selector": {"pool": "gpu"}},
    {"tolerations": (Toleration(key="gpu"),)},
    {"gang": "volcano"},
    {"scheduler": "mine"},
    {"site": dataclasses.replace(SITE, env={"A": "b"})},
    {"site": dataclasses.replace(SITE, secrets=())},
    {"site": dataclasses.replace(SITE, service_account="other")},
    {"image": "registry.test/cmapkd@sha256:2"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(change))
def test_a_job_with_other_pods_is_another_job_and_the_old_one_makes_way(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    old, _ = start()
    cluster.ends("first")
    cluster.launcher("second", monkeypatch)
    new, ours = start(described(**change))
    assert (new != old, ours) == (True, True)
    assert [job["metadata"]["name"] for job in cluster.jobs()] == [new]
    assert old not in cluster.saving  # its pods have saved before the new ones begin
    assert f"TrainJob {old} of an earlier attempt has another image or other pods: deleted" in capfd.readouterr().out


def test_other_stages_and_runs_are_left_alone(cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    start(described("another"), args=["--recipe", "tiny", "--run", "another"])
    assert len(cluster.jobs()) == 2
    assert cluster.deleted == []
    cluster.ends("first")
    cluster.launcher("second", monkeypatch)
    start(described("another"), args=[*ARGS, "--redo", "yes"])  # of the same stage all the same
    assert len(cluster.deleted) == 1


def test_a_job_with_another_image_that_a_living_pod_follows_is_not_taken_away(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = start()
    cluster.launcher("second", monkeypatch)
    with pytest.raises(JobError, match=rf"TrainJob {old} of pod first .* wait for its run, or end it, then try again"):
        start(described("another"))
    assert cluster.deleted == []
    cluster.ends("first")  # the way out
    assert start(described("another"))[1]


def test_a_job_that_does_not_go_is_named(cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "GONE_SECONDS", 0.05)
    name, _ = start()
    cluster.vanish(name)
    cluster.saving[name] = 10_000
    with pytest.raises(
        JobError, match=rf"does not go away: kubectl -n \S+ delete trainjob {name}, and kubectl -n \S+ get pods -l "
    ):
        start()


def test_who_waits_for_another_pod_s_job_goes_on_when_that_pod_has_done_with_it(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It deletes the job that is complete, and who waits may see no more of it than that."""
    start()
    cluster.launcher("other", monkeypatch)
    followed: list[list[str]] = []

    def follow(client: Any, name: str, *given: Any) -> bool:
        followed.append(owners(cluster))
        if len(followed) == 1:
            cluster.collect("first")
            raise JobGone("gone")
        return False

    monkeypatch.setattr(trainjob, "follow", follow)
    given = ["--job", json.dumps(described()), "--image", SITE.image, "--processes", "8", "--shutdown-timeout", "25"]
    assert trainjob.main([*given, "--", "some_stage", *ARGS, "--artifact", "x"]) == 1
    assert followed == [["uid-first"], ["uid-other"]]


def test_a_job_that_is_deleted_while_it_is_followed_is_said_at_once(cluster: Kubernetes) -> None:
    name, _ = start()
    cluster.vanish(name)
    with pytest.raises(JobGone, match="was deleted while it ran, .* the stage goes on from its last checkpoint"):
        trainjob.follow(trainjob._client(), name, 60, 1)
