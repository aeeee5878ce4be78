"""`make test-cluster`: two chapters on a real Slurm of two nodes on this machine, their trainings fanned out.

It must be root, and have Debian's slurm-wlm and munge, or apt-get to install them. Slurm gets a folder of its own and
no accounting, so jobs are asked for by squeue. Trainings are killed on their way; they must be submitted again, go on
after their last whole epoch, and end with the weights of a training that nobody stopped, bit for bit.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
JOBS = ROOT / "_build/jobs/smoke-default"
CHAPTERS = ("hpat/table1_benchmarks", "ultrasound/fig1_2_image_and_noise")
SETTINGS = Path("/etc/slurm/slurm.conf")  # where jobs look: Snakemake takes SLURM_CONF out of their environment
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
CONFIGURATION = """
ClusterName=hpat
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
MinJobAge=600
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
NodeName=one NodeHostname={host} Port={ports[1]} CPUs=1 RealMemory={memory}
NodeName=two NodeHostname={host} Port={ports[2]} CPUs=1 RealMemory={memory}
PartitionName=all Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""


def installed() -> bool:
    """Whether Slurm and munge are here, after trying to install them."""
    if not all(map(shutil.which, COMMANDS)) and shutil.which("apt-get"):
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "slurm-wlm", "munge"]):
            subprocess.run(["apt-get", *command], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    return all(map(shutil.which, COMMANDS))


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Munge, a controller and two nodes."""
    for name in ("munge", "state", "spool-one", "spool-two"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    told = {"host": socket.gethostname(), "folder": folder, "ports": free_ports(3), "memory": megabytes // 2}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**told))
    if SETTINGS.exists():
        raise SystemExit(f"{SETTINGS} is there: this machine has a Slurm of its own, so none is started")
    SETTINGS.parent.mkdir(parents=True, exist_ok=True)
    SETTINGS.unlink(missing_ok=True)  # a link of a test that was killed
    SETTINGS.symlink_to(folder / "slurm.conf")
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{name}={folder}/munge/{file}" for name, file in files.items()]
    services = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"]]
    services += [["slurmd", "-D", "-N", node] for node in ("one", "two")]
    running: list[subprocess.Popen] = []
    try:
        for command in services:
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(2)
        wait(lambda: asked("sinfo", "-h", "-o", "%t %D") == "idle 2", 120, "two idle nodes")
        yield
    finally:
        for service in reversed(running):
            service.send_signal(signal.SIGTERM)
        for service in running:
            service.wait(60)
        SETTINGS.unlink()


def asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def wait(condition, seconds: float, what: str):
    """The first true answer of ``condition``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise SystemExit(f"no {what} after {seconds:.0f} s")


def epochs(checkpoint: Path) -> list[dict]:
    """The rows that a checkpoint holds; none where it is gone."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            return json.loads(file.metadata()["rows"])
    except (OSError, RuntimeError):  # the training has just ended
        return []


def checksum(weights: Path) -> str:
    """Of the tensors in a file: its bytes may differ, as what it says of itself has no order."""
    with safe_open(weights, framework="pt") as file:
        return file.metadata()["checksum"]


def killed_on_their_way(home: Path, book: subprocess.Popen) -> dict[str, list[dict]]:
    """Kill the trainings that run as soon as one has whole epochs: key → the rows that it had."""

    def begun() -> dict[str, list[dict]] | None:
        if book.poll() is not None:
            raise SystemExit(f"hpat book ended with {book.returncode} before a training could be killed")
        found = {path.parent.name: epochs(path) for path in home.glob("models/*/checkpoint.safetensors")}
        return {key: rows for key, rows in found.items() if rows}

    rows = wait(begun, 600, "checkpoint of a training")
    jobs = asked("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()
    asked("scancel", "--signal=KILL", "--full", *jobs)
    return rows


def main() -> None:
    if os.geteuid() != 0 or not installed():
        raise SystemExit("a Slurm of our own needs root, and slurm-wlm and munge, which could not be installed here")
    with tempfile.TemporaryDirectory(prefix="hpat-slurm-") as name, cluster(Path(name)):
        home, alone = Path(name) / "home", Path(name) / "alone"
        environment = {**os.environ, "HPAT_HOME": str(home), "HPAT_RECORDS": f"{name}/records", "OMP_NUM_THREADS": "1"}
        hpat = [sys.executable, "-W", "ignore", "-m", "hpatlib"]
        shutil.rmtree(JOBS, ignore_errors=True)
        for chapter in CHAPTERS:
            (ROOT / f"_build/run/smoke-default/{chapter}.ipynb").unlink(missing_ok=True)
        started = time.monotonic()
        command = [*hpat, "book", "--executor", "slurm", *(f"--chapter={chapter}" for chapter in CHAPTERS)]
        command += ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "5"]
        book = subprocess.Popen([*command, "--seconds-between-status-checks", "5"], cwd=ROOT, env=environment)
        try:
            had = killed_on_their_way(home, book)
            if book.wait() != 0:
                raise SystemExit(f"hpat book ended with {book.returncode}")
        finally:
            book.terminate()
        trained = {path.parent.name: json.loads(path.read_text()) for path in home.glob("models/*/run.json")}
        print(f"{len(trained)} models and {len(CHAPTERS)} chapters in {time.monotonic() - started:.0f} s on two nodes")
        resumed = [key for key, rows in had.items() if trained[key]["epochs"][: len(rows)] == rows]
        stopped = [path for path in JOBS.glob("*.key") if path.read_text().strip() in had]
        recipes = [str(path.with_suffix(".json")) for path in stopped]
        subprocess.run(
            [*hpat, "train", *recipes], env={**environment, "HPAT_HOME": str(alone)}, check=True, capture_output=True
        )
        weights = [Path("models") / key / "model.safetensors" for key in had]
        same = [path for path in weights if checksum(alone / path) == checksum(home / path)]
        print(
            f"killed after whole epochs: {len(had)}; gone on: {len(resumed)}; same bits as never stopped: {len(same)}"
        )
        if not len(had) == len(resumed) == len(same):
            raise SystemExit("a killed training did not go on as it should")


if __name__ == "__main__":
    main()
