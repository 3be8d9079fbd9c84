"""Site files."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from annotations import bounds, hints, kinds, outside

from cmapkd.pipelines.site import Pod, Secret, Site, Toleration, load_site, on_this_machine
from cmapkd_core.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "site.example.toml"


def written(folder: Path, text: str) -> str:
    (folder / "site.toml").write_text(text)
    return str(folder / "site.toml")


def keys(config: object, prefix: str = "") -> set[str]:
    """Dotted names of all fields, tables taken apart."""
    found = set()
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        found |= keys(value, f"{prefix}{field.name}.") if dataclasses.is_dataclass(value) else {prefix + field.name}
    return found


def test_the_example_names_every_field_and_its_defaults_are_ours() -> None:
    text = EXAMPLE.read_text()
    site = load_site(str(EXAMPLE), required=True)
    filled = {"endpoint", "root", "image", "data"}
    assert {n: v for n, v in vars(site).items() if n not in filled} == {
        n: v for n, v in vars(Site()).items() if n not in filled
    }
    assert all(name.split(".")[-1] in text for name in keys(site))
    assert set(tomllib.loads(text)) | {"secrets"} == {field.name for field in dataclasses.fields(Site)}


def test_a_table_changes_only_what_it_names(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'secrets = [{ name = "s3", env = { KEY = "k" } }]\n'
        '[pods.train]\ngpus = 2\nhours = 3\ntolerations = [{ key = "gpu" }]\nnode_selector = { pool = "a" }\n',
    )
    site = load_site(path)
    assert site.secrets == (Secret("s3", {"KEY": "k"}),)
    assert site.pods.train == dataclasses.replace(
        Site().pods.train, gpus=2, hours=3.0, tolerations=(Toleration("gpu"),), node_selector={"pool": "a"}
    )
    assert site.pods.evaluate == Site().pods.evaluate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("endpont = 'x'", "unknown key 'endpont': did you mean 'endpoint'"),
        ("[pods.train]\nmemry = '1Gi'", "unknown key 'pods.train.memry': did you mean 'memory'"),
        ("[[secrets]]\nnane = 'x'", "did you mean 'name'"),
        ("[[secrets]]\nname = 'x'", "needs name and env"),
        ("image_pull_policy = 'Sometimes'", "IfNotPresent"),
        ("[pods.train]\ngpus = 'eight'", "pods.train.gpus = 'eight'"),
        ("[pods.train]\ngpus = -1", "cannot be below 0"),
        ("[pods.report]\nhours = 0", "pods.report.hours = 0: after how long a pod is ended: a second to a year"),
        ("[pods.report]\nhours = nan", "pods.report.hours = nan"),
        ("[pods.evaluate]\nnodes = 2", "more for pods.train alone"),
        ("[pods.report]\nmemory = '16 GB'", "write a size like '16Gi'"),
        ("[pods.train]\nscratch = 'big'", "pods.train.scratch = 'big': write a size like '16Gi'"),
        ("[pods.report]\ncpu = 'two'", "pods.report.cpu"),
        ("shutdown_timeout = 0", "shutdown_timeout = 0: 1 to 29 seconds"),
        ("shutdown_timeout = 30", "shutdown_timeout = 30: .* kills a TrainJob's pod 30 s after SIGTERM"),
        ("[pods.evaluate]\ntrainjob = true", "pods.evaluate.trainjob = true: for pods.train alone"),
        ("[pods.train]\nnodes = 2\ngang = 'vulcano'", "gang = 'vulcano': '' or one of coscheduling, volcano"),
        ("[pods.train]\ngang = 'volcano'", "pods.train.gang is for a TrainJob: .* nodes above 1 or trainjob = true"),
        ("[pods.train]\nscheduler = 'x'", "pods.train.scheduler is for a TrainJob"),
        ("[weights]\n'ViT-L-14' = 's3://b/l.pt'", r'weights."ViT-L-14" = .*write the line that .*fetch_weights prints'),
        ("[weights]\n'ViT-L-14 openai' = 'laion@s3://b/l.pt'", '"MODEL TAG" = "TAG@FILE"'),
        ("[weights]\n'ViT-L-14 openai' = 'openai@s3://me:word@b/l.pt'", r'weights."ViT-L-14 openai"'),
        ("root = ", "cannot be read"),
        ("[env]\nPORT = 80", r"env = a table: expected a table of texts like { name = 'text' } or \[env\]"),
        ("[weights]\n'ViT-L-14 openai' = 1", "weights = a table: expected a table of texts"),
        ("[pods.train.node_selector]\npool = 1", "pods.train.node_selector = a table: expected a table of texts"),
        ("secrets = [{ name = 'x', env = { A = 1 } }]", "secrets.env = a table: expected a table of texts"),
        ("secrets = [3]", r"secrets = \[3\]: expected a list of tables, such as \[{ name = 'secret'"),
        ("[pods.train]\ntolerations = [{ key = 3 }]", "pods.train.tolerations.key = 3: expected a value like ''"),
        ("image_pull_secrets = ['a', 1]", r"image_pull_secrets = \['a', 1\]: expected a list of texts"),
        ("namespace = 2026-01-01", r"namespace = datetime.date\(2026, 1, 1\): expected a value like ''"),
        ("pods = 3", r"pods = 3: expected a table \[pods\]"),
        ("[pods.train]\ngpus = true", "pods.train.gpus = True: expected a value like 8"),
        ("[pods.train]\ngpus = 1.0", "pods.train.gpus = 1.0: expected a value like 8"),
        ("[local]\nprocesses = -1", "local.processes = -1: it cannot be below 0"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_site(written(tmp_path, text))


HINTS = hints(Site())
NUMBERS = {name: kinds(hint).pop() for name, hint in HINTS.items() if kinds(hint) & {int, float}}
BOUNDS = [(name, bound) for name in NUMBERS for bound in bounds(HINTS[name])]


def test_every_number_has_its_bounds_and_is_refused_outside_of_them(tmp_path: Path) -> None:
    assert {name for name, _ in BOUNDS} == {*NUMBERS} >= {"parallel", "retry.factor", "pods.gate.hours"}
    for name, bound in BOUNDS:
        value = outside(bound, NUMBERS[name])
        with pytest.raises(InputError, match=re.escape(f": {name} = {value!r}: ")):
            load_site(written(tmp_path, f"{name} = {value!r}"))


def test_a_gang_has_two_ways_to_a_trainjob(tmp_path: Path) -> None:
    for more in ("nodes = 2", "trainjob = true"):
        pod = load_site(written(tmp_path, f"[pods.train]\ngang = 'volcano'\n{more}")).pods.train
        assert (pod.gang, pod.as_trainjob) == ("volcano", True)


@pytest.mark.parametrize("seconds", [1, 29])
def test_ranks_may_have_any_time_below_the_grace_period(tmp_path: Path, seconds: int) -> None:
    assert load_site(written(tmp_path, f"shutdown_timeout = {seconds}")).shutdown_timeout == seconds


def test_an_absent_file_is_fine_unless_it_was_asked_for(tmp_path: Path) -> None:
    assert load_site(str(tmp_path / "none.toml")) == Site()
    with pytest.raises(InputError, match=r"copy site\.example\.toml"):
        load_site(str(tmp_path / "none.toml"), required=True)


def test_a_local_run_is_below_one_folder_with_one_rank() -> None:
    site = on_this_machine(Site(root="s3://bucket/x", tracking_uri="http://mlflow"))
    assert (site.root, site.pods.train.ranks) == ("runs/local", 1)
    assert site.tracking_uri.startswith("sqlite:////")
    assert site.tracking_uri.endswith("/runs/local/mlflow.db")
    assert on_this_machine(Site(tracking_uri="http://mlflow"), "s3://bucket/x").tracking_uri == "http://mlflow"


def test_ranks_follow_the_gpus_unless_given() -> None:
    assert [Pod(gpus=8).ranks, Pod(gpus=0).ranks, Pod(gpus=0, processes=2).ranks] == [8, 1, 2]
