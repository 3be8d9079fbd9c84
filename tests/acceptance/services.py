"""The services of a cluster on this machine: an S3 server (Ceph) and MLflow with PostgreSQL, its files on that S3.

`python tests/acceptance/services.py IMAGE` starts them, prints the environment that leads to them, and ends them at
Ctrl-C. Needs Docker, and Debian's postgresql and Ceph (ceph.sh names its packages).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3

HERE = Path(__file__).parent
BUCKET = "cmapkd"
KEYS = {"AWS_ACCESS_KEY_ID": "acceptance", "AWS_SECRET_ACCESS_KEY": "acceptance-secret"}
PASSWORD = "acceptance"  # of the database
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # as k8s/components/mlflow: eight processes for none of ours
ENDS = {signal.SIGINT, signal.SIGTERM}
PATIENCE = 120.0  # seconds for a service to answer

# As a pod of Pod Security's level "restricted" with a read-only root; the user is the image's own.
CLOSED = ("--read-only", "--tmpfs", "/tmp:size=8g", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


class Unavailable(Exception):
    """A service cannot be had here; says what is missing."""


@contextmanager
def everything(image: str) -> Iterator[dict[str, str]]:
    """The environment of a client: S3's endpoint and keys, MLflow's address.

    Raises:
        Unavailable: a program is not installed, or does not come up.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cmapkd-services-")))
        folder.chmod(0o755)  # the database's user passes through
        env = stack.enter_context(ceph(folder / "ceph"))
        port = stack.enter_context(postgres(folder / "postgres"))
        yield env | {"MLFLOW_TRACKING_URI": stack.enter_context(mlflow(image, env, port))}


@contextmanager
def ceph(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server with one bucket; the environment that leads to it."""
    need("radosgw", "ceph-mon")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1", **KEYS}
    try:
        command = [str(HERE / "ceph.sh"), str(folder), str(port), *KEYS.values()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"Ceph did not start: {done.stderr}")
        client(env).create_bucket(Bucket=BUCKET)
        yield env
    finally:
        for file in (folder / "run").glob("*.pid"):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGTERM)


@contextmanager
def postgres(folder: Path) -> Iterator[int]:
    """A PostgreSQL server with the database `mlflow`; its port."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        raise Unavailable("PostgreSQL is missing: apt-get install postgresql")
    port, binaries = free_port(), found[-1]
    folder.mkdir()
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")  # it refuses to run as root
    secret = folder / "password"

    def run(*command: str) -> None:
        as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        subprocess.run([*as_user, *command], check=True, capture_output=True, cwd=folder, env=env)

    env = {**os.environ, "PGPASSWORD": PASSWORD}
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    data = str(folder / "data")
    run(f"{binaries}/initdb", "-D", data, "-U", "mlflow", "-A", "scram-sha-256", "--pwfile", str(secret))
    where = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
    run(f"{binaries}/pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", where, "start")
    try:
        run(f"{binaries}/createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow")
        yield port
    finally:
        run(f"{binaries}/pg_ctl", "-D", data, "-w", "-m", "fast", "stop")


@contextmanager
def mlflow(image: str, s3: Mapping[str, str], database: int) -> Iterator[str]:
    """MLflow's server from our image, started as k8s/components/mlflow starts it; its address."""
    need("docker")
    name = f"cmapkd-mlflow-{os.getpid()}"
    env = {**s3, "PGPASSWORD": PASSWORD, "MLFLOW_DISABLE_TELEMETRY": "true", **NO_JOBS}
    variables = [part for item in env.items() for part in ("--env", "=".join(item))]
    url, command = mlflow_command(f"postgresql+psycopg2://mlflow@127.0.0.1:{database}/mlflow", f"s3://{BUCKET}/mlflow")
    options = ["--detach", "--rm", "--name", name, "--network", "host", *CLOSED, *variables]
    subprocess.run(["docker", "run", *options, image, *command], check=True, capture_output=True)
    try:
        wait_for(url)
        yield url
    finally:
        subprocess.run(["docker", "stop", "--time", "5", name], check=False, capture_output=True)


@contextmanager
def mlflow_process(folder: Path, files: str) -> Iterator[str]:
    """MLflow's server of this environment with SQLite, its files below the URL `files`; its address."""
    url, command = mlflow_command(f"sqlite:///{folder / 'mlflow.db'}", files)
    log = (folder / "mlflow.log").open("w")
    env = {**os.environ, **NO_JOBS}
    server = [sys.executable, "-m", *command]
    process = subprocess.Popen(server, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(url)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        log.close()


def mlflow_command(store: str, files: str) -> tuple[str, list[str]]:
    """The address of a server on a free port, and the command that starts it."""
    port = free_port()
    server = ["mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    return f"http://127.0.0.1:{port}", [*server, f"--backend-store-uri={store}", f"--artifacts-destination={files}"]


def client(env: Mapping[str, str]) -> Any:
    """An S3 client of that environment."""
    return boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region_name=env["AWS_DEFAULT_REGION"],
    )


def need(*programs: str) -> None:
    """Raises Unavailable for a program that is not installed."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        raise Unavailable(f"{' and '.join(missing)} missing here: see {HERE / 'ceph.sh'} and CONTRIBUTING.md, Checks")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str) -> None:
    """Ask MLflow's server until it answers; raises Unavailable after PATIENCE seconds."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise Unavailable(f"MLflow at {url} did not answer within {PATIENCE:.0f} s")


if __name__ == "__main__":
    with everything(sys.argv[1]) as found:
        for variable, value in found.items():
            print(f"export {variable}={value}", flush=True)
        # Blocked only now: the services would inherit it.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
        signal.sigwait(ENDS)
