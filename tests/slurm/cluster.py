"""A real SLURM cluster on one machine, for tests: munged, slurmctld and two slurmd with hostnames of their own.

    python tests/slurm/cluster.py start [--dir D] [--gpus G] [--proctrack cgroup|linuxproc] …
    export SLURM_CONF=D/slurm.conf        # then sbatch, squeue, rankzero submit …
    python tests/slurm/cluster.py stop [--dir D]

Needs root and Debian's slurmctld, slurmd, slurm-client and munge; no systemd. Everything (key, sockets, spool, logs)
is below one folder, and everything listens on 127.0.0.1. Only processes that were started here are ever signalled: each
is remembered by its number and the time it was born.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from network import Network

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
FREEZER = Path("/sys/fs/cgroup/freezer")  # what proctrack/cgroup of Slurm 22.05 needs without systemd
os.environ["PATH"] += ":/usr/sbin:/sbin"


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    if lacking:
        return f"no {', '.join(lacking)} (Debian: slurmctld slurmd slurm-client munge)"
    return None


def can_track_by_cgroup() -> bool:
    """Whether proctrack/cgroup, which signals only the direct process of a task, can run here (cgroup v1, writable)."""
    return (FREEZER / "tasks").exists() and os.access(FREEZER, os.W_OK)


def has_namespaces() -> bool:
    """Whether each node can have a hostname and a hosts file of its own."""
    return subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode == 0


def free_port(first: int = 26000) -> int:
    """A port from which on the daemons' own are free: clusters may stand side by side."""
    for port in range(first, 30000, 100):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for number in (port, port + 1, *range(port + 20, port + 30)):
                held.enter_context(socket.socket()).bind(("127.0.0.1", number))
            return port
    raise OSError(f"no hundred free ports from {first} to 30000")


@dataclass(frozen=True)
class Cluster:
    """What it is made of; `folder` holds all of it. `gpus` per node are faked: device files that are /dev/null. With a
    `network` each node has a separate address, and knows no name but its own, as 127.0.1.1 (so Debian writes it).
    Without `requeues` pre-empted jobs are cancelled, and jobs are not requeued unless they ask for it. `grace` is the
    time in seconds between a pre-emption and its signal to end."""

    folder: Path
    nodes: int = 2
    gpus: int = 0
    cpus: int = 4
    port: int = 26800
    proctrack: str = "linuxproc"
    kill_wait: int = 15
    requeues: bool = True
    grace: int = 60
    network: Network | None = None

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs: sbatch, squeue, rankzero submit."""
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        """Up and idle, or an error with the daemons' last words."""
        self._write()
        if self.network:
            self.network.make()
        try:
            self._start()
        except TimeoutError:
            for log in sorted((self.folder / "log").glob("*.out")):
                print(f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}", file=sys.stderr)
            self.stop()
            raise

    def _start(self) -> None:
        key, run = self.folder / "run" / "munge.key", self.folder / "run"
        self._spawn(
            *("munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={run}/munge.socket"),
            *(f"--pid-file={run}/munged.pid", f"--seed-file={run}/munged.seed"),
            f"--log-file={self.folder}/log/munged.log",
        )  # force: also where others may not look into the folder
        _until((run / "munge.socket").exists, 10, "munged has made no socket")
        self._spawn("slurmctld", *self._as("localhost"), "slurmctld", "-D", "-i", "-f", str(self.conf))
        for number, node in enumerate(self._names(), start=1):
            self._spawn(f"slurmd.{node}", *self._as(node, number), "slurmd", "-D", "-N", node, "-f", str(self.conf))
        _until(self._idle, 30, "the nodes are not idle")

    def stop(self) -> None:
        """Ends the jobs through SLURM, then the daemons that `start` has started, last first."""
        for signal in ([], ["--signal=KILL"]):
            jobs = self.ask("squeue", "-h", "-o", "%A").split()
            if jobs:
                self.ask("scancel", *signal, *sorted(set(jobs)))
                with contextlib.suppress(TimeoutError):
                    _until(lambda: not self.ask("squeue", "-h", "-t", "R,CG,S").strip(), 15 if signal else 5, "")
        ours = list(reversed(self._processes()))
        for process in ours:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, stubborn = psutil.wait_procs(ours, timeout=10)
        for process in [*stubborn, *self._orphans()]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        (self.folder / "run" / "processes").unlink(missing_ok=True)
        if self.network:
            self.network.remove()
        another = any(process.info["name"] == "slurmd" for process in psutil.process_iter(["name"]))
        for folder in () if another else FREEZER.glob("slurm_node*"):  # its nodes have the same names
            for below in [*sorted(folder.rglob("*/"), reverse=True), folder]:
                with contextlib.suppress(OSError):
                    below.rmdir()

    def ask(self, *words: str) -> str:
        """What a client command prints; empty when the controller does not answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=10)
            return asked.stdout
        return ""

    # -- making ----------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    def _as(self, hostname: str, node: int = 0) -> list[str]:
        """A prefix that runs a command with that hostname, and names that are all 127.0.0.1, or in a network."""
        if not has_namespaces():
            return []
        script = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
        spaces = ["--uts", "--mount"]
        if self.network and node:
            script, spaces = self.network.join(node) + script, [*spaces, "--net"]
        hosts = self.folder / f"hosts.{hostname}"
        names = f"127.0.1.1 {hostname}\n" if self.network else "".join(f"127.0.0.1 {name}\n" for name in self._names())
        hosts.write_text(Path("/etc/hosts").read_text() + names)
        return ["unshare", *spaces, "bash", "-c", script, "_", str(hosts), hostname]

    def _address(self, node: int = 0) -> str:
        return self.network.address(node) if self.network else "127.0.0.1"

    def _spawn(self, name: str, *command: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        with (self.folder / "run" / "processes").open("a") as file:
            file.write(f"{process.pid} {psutil.Process(process.pid).create_time()}\n")

    def _processes(self) -> list[psutil.Process]:
        """Those of ours that live."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "run" / "processes").read_text().splitlines():
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(int(line.split()[0]))
                    if process.create_time() == float(line.split()[1]):
                        found.append(process)
        return found

    def _orphans(self) -> list[psutil.Process]:
        """slurmstepd of ours, which live in our folder and wait for a controller that has gone, with their jobs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ValueError):
                if process.name() == "slurmstepd" and Path(process.cwd()).is_relative_to(self.folder):
                    found += [process, *process.children(recursive=True)]
        return found

    def _idle(self) -> bool:
        states = self.ask("sinfo", "-h", "-N", "-o", "%N %T").splitlines()
        return {f"{node} idle" for node in self._names()} <= {line.strip() for line in states}

    def _write(self) -> None:
        for name in ("", "run", "log", "ctld", "spool", "dev"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "run" / "processes").unlink(missing_ok=True)
        key = self.folder / "run" / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        if self.gpus:
            for number in range(self.gpus):
                device = self.folder / "dev" / f"nvidia{number}"
                if not device.exists():
                    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            files = f"{self.folder}/dev/nvidia[0-{self.gpus - 1}]" if self.gpus > 1 else f"{self.folder}/dev/nvidia0"
            (self.folder / "gres.conf").write_text(f"NodeName=node[1-{self.nodes}] Name=gpu File={files}\n")
        if self.proctrack == "cgroup":
            (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        self.conf.write_text(self._configuration())

    def _configuration(self) -> str:
        d, gres = self.folder, f" Gres=gpu:{self.gpus}" if self.gpus else ""
        own_names = has_namespaces()
        nodes = "".join(
            f"NodeName={node} NodeHostname={node if own_names else socket.gethostname()} "
            f"NodeAddr={self._address(number)} Port={self.port + 20 + number} CPUs={self.cpus} RealMemory=16000{gres}\n"
            for number, node in enumerate(self._names(), start=1)
        )
        # every name is 127.0.0.1, so that daemons may listen on what their name means and on nothing else
        listen = "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny\n" if own_names and not self.network else ""
        return f"""\
ClusterName=rankzerotests
SlurmctldHost=localhost({self._address()})
{listen}SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={d}/run/munge.socket
CredType=cred/munge
SlurmctldPort={self.port}
SlurmdPort={self.port + 1}
StateSaveLocation={d}/ctld
SlurmdSpoolDir={d}/spool/%n
SlurmctldPidFile={d}/run/slurmctld.pid
SlurmdPidFile={d}/run/slurmd.%n.pid
SlurmctldLogFile={d}/log/slurmctld.log
SlurmdLogFile={d}/log/slurmd.%n.log
SlurmctldParameters=preempt_send_user_signal
ProctrackType=proctrack/{self.proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={d}/log/jobcomp.txt
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode={"REQUEUE" if self.requeues else "CANCEL"}
KillWait={self.kill_wait}
MinJobAge=3600
FirstJobId={self.port}
JobRequeue={int(self.requeues)}
{"GresTypes=gpu" if self.gpus else ""}
{nodes}\
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 \
PreemptMode={"REQUEUE" if self.requeues else "CANCEL"} GraceTime={self.grace}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def _until(condition: Callable[[], object], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} after {seconds} s")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/rankzero-slurm"))
    for name, value in (("nodes", 2), ("gpus", 0), ("cpus", 4), ("port", 26800)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--proctrack", choices=["cgroup", "linuxproc"], default="linuxproc")
    words = parser.parse_args()
    cluster = Cluster(words.dir.resolve(), words.nodes, words.gpus, words.cpus, words.port, words.proctrack)
    if words.action == "stop":
        cluster.stop()
        return
    why = missing()
    if why:
        sys.exit(why)
    cluster.start()
    print(f"export SLURM_CONF={cluster.conf}")


if __name__ == "__main__":
    main()
