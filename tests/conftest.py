"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked import Forked

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported; the processes that tests start have it too
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# A worker imports every test file, and what that makes stays to the end: the collector would look through it again and
# again, a quarter of what collecting costs.
gc.disable()


def pytest_collection_finish() -> None:
    """What is there now stays, and is no longer looked through."""
    gc.enable()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How often each fault of tests/faults is made; here, since pytest asks before it looks into that folder."""
    parser.addoption("--faults", choices=("few", "all"), default="few", help="counts of tests/faults")
    parser.addoption("--fast", action="store_true", help="without servers, stages and compiled packages")
    parser.addoption("--fault-seed", type=int, default=0, help="of the faults' times and places")


# `--fast`, the inner loop (`make test-fast`), has what lies in these folders and beside this file,
FAST = {"losses", "methods", "models", "engine", "data", "evaluate", "report"}
# but for the files of which most tests build real towers, draw whole reports, start processes or read every module,
SLOW = {
    *("test_backbones.py", "test_build.py", "test_compose.py", "test_convert_weights.py", "test_families.py"),
    *("test_tags.py", "test_efficiency.py", "test_vqa.py", "test_folder.py", "test_snapshots.py", "test_temporary.py"),
    *("test_fuzz_sources.py", "test_commands.py", "test_layers.py", "test_run_page.py", "test_use.py"),
    *("test_in_parts.py", "test_gradients.py", "test_feed.py", "test_watch.py", "test_tracking.py", "test_outcome.py"),
    *("test_api.py", "test_cli.py", "test_gpu_benchmark.py", "test_start.py", "test_documents.py", "test_compiled.py"),
}
# and the tests of what takes seconds to make: servers (a parameter "s3" too), finished stages, ranks and packages.
COSTLY = {"s3_endpoint", "mlflow_made", "tiny_shards", "quick_compile", "start_ranks"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`--fast`: the folders and files that are not even imported."""
    below = collection_path.relative_to(Path(__file__).parent).parts
    if not below or not config.getoption("--fast"):
        return None
    return ((len(below) > 1 or collection_path.is_dir()) and below[0] not in FAST) or below[-1] in SLOW or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`--fast`: the tests that are left out of the other files."""
    if config.getoption("--fast"):
        costly = [item for item in items if _is_costly(item)]
        config.hook.pytest_deselected(items=costly)
        items[:] = [item for item in items if not _is_costly(item)]


def _is_costly(item: pytest.Item) -> bool:
    parameters = item.name.partition("[")[2].lower()
    return bool(COSTLY & {*getattr(item, "fixturenames", ())}) or "s3" in parameters


def _one_at_a_time(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Real servers check If-None-Match and store in one step; moto does it in two, so its calls must not overlap."""
    lock = threading.Lock()

    def locked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with lock:
            return app(environ, start_response)

    return locked


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3 server that speaks real HTTP on a free port."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    server._server.app = _one_at_a_time(server._server.app)
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def start_ranks() -> Iterator[Callable[..., list[Forked]]]:
    """`start_ranks(script, *arguments)`: it in two processes as torchrun starts them; they end with the test file."""
    started: list[Forked] = []

    def start(script: Path, *arguments: str) -> list[Forked]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        ranks = [Forked(str(script), arguments, shared | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
        started.extend(ranks)
        return ranks

    yield start
    for process in started:
        process.close()


CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test-access-key", "AWS_SECRET_ACCESS_KEY": "test-secret-key"}


@pytest.fixture(scope="session")
def s3_client(s3_endpoint: str) -> Any:
    import boto3

    return boto3.session.Session().client(
        "s3",
        endpoint_url=s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.fixture
def s3_root(s3_endpoint: str, s3_client: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://BUCKET/root` in a new bucket; the environment (child processes have it too) points to the server."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    region = {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in {"AWS_ENDPOINT_URL": s3_endpoint, **CREDENTIALS, **region}.items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/root"


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the tiny recipe's prepared data: 87 training pairs; stages with other roots may read it."""
    from cmapkd_core.request import Request
    from cmapkd_core.stages import prepare

    return prepare.run(Request("tiny", str(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory, tiny_shards: str) -> str:
    """URL of the tiny recipe's fitted teacher."""
    from cmapkd_core.request import Request
    from cmapkd_core.stages import teacher

    return teacher.run(Request("tiny", str(tmp_path_factory.mktemp("tiny"))), shards=tiny_shards)


@pytest.fixture(scope="session")
def tiny_warmup(tmp_path_factory: pytest.TempPathFactory, tiny_shards: str, tiny_teacher: str) -> str:
    """URL of the tiny recipe's warm-up."""
    from cmapkd_core.request import Request
    from cmapkd_core.stages import train

    request = Request("tiny", str(tmp_path_factory.mktemp("tiny")))
    return train.run(request, stage="warmup", shards=tiny_shards, teacher=tiny_teacher)


@pytest.fixture(scope="session")
def quick_compile() -> Iterator[None]:
    """What compiling spends its time on beside the package: KFP's look at the stack, and YAML written in Python.

    KFP asks for the whole stack, with the source of each frame, to know one name at every setter of every task. Where
    transformers is loaded, each time looks through its thousands of lazy modules. libyaml writes the same documents.
    """
    import yaml
    from kfp.compiler import pipeline_spec_builder
    from kfp.dsl import pipeline_task, structures

    def stack() -> list[tuple[Any, ...]]:
        return [(), (None, None, None, sys._getframe(2).f_code.co_name)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_task, "inspect", SimpleNamespace(**{**vars(inspect), "stack": stack}))
        if hasattr(yaml, "CDumper"):
            dump_all = partial(yaml.dump_all, Dumper=yaml.CDumper)
            patch.setattr(pipeline_spec_builder, "yaml", SimpleNamespace(**{**vars(yaml), "dump_all": dump_all}))
            load = partial(yaml.load, Loader=yaml.CSafeLoader)
            load_all = partial(yaml.load_all, Loader=yaml.CSafeLoader)
            quick = {"safe_load": load, "safe_load_all": load_all}
            patch.setattr(structures, "yaml", SimpleNamespace(**{**vars(yaml), **quick}))
        yield


@pytest.fixture(scope="session")
def quick_pdf() -> Iterator[None]:
    """A figure's PDF has its fonts without their layout tables, which no PDF uses: most of what embedding one costs."""
    from fontTools.subset import Options

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Options, "_drop_tables_default", [*Options._drop_tables_default, "GSUB", "GPOS", "GDEF"])
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bits depend on the thread count."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What a stage does to SIGTERM ends with the test."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def terminate_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`terminate_after(n)`: this process gets a real SIGTERM in the training loop, when n more updates are done."""
    from cmapkd_core.engine.runtime import StopRequest

    original = StopRequest.flags

    def arrange(updates: int) -> None:
        seen = 0

        def flags(self: StopRequest, due: bool) -> tuple[bool, bool]:
            nonlocal seen
            seen += 1
            if seen == updates:
                signal.raise_signal(signal.SIGTERM)
            return original(self, due)

        monkeypatch.setattr(StopRequest, "flags", flags)

    return arrange


FIRST_STAGE = """
import logging, sys
from pathlib import Path
from cmapkd_core.tracking import Tracker
logging.basicConfig(level=logging.INFO)
assert "mlflow" not in sys.modules
tracker = Tracker.open("sqlite:///deep/mlflow.db", run="r", stage="s", journal=Path("j"), params={"a": 1})
tracker.log({"loss": 1.0}, 0)
left = tracker.close(seconds=120)
print(len(tracker.run_id), left.journal, left.text)
"""


@pytest.fixture(scope="session")
def mlflow_made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder where a stage has made MLflow's SQLite file, and what that stage printed on stdout and stderr."""
    folder = tmp_path_factory.mktemp("mlflow")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", FIRST_STAGE]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return folder, done.stdout, done.stderr


@pytest.fixture(scope="session")
def mlflow_database(mlflow_made: tuple[Path, str, str]) -> str:
    """URI of that file, the same for all tests, which use different names: MLflow takes seconds to make one."""
    return f"sqlite:///{mlflow_made[0]}/deep/mlflow.db"
