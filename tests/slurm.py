"""A real Slurm for tests: Debian's slurmctld and one slurmd a node, all on this host, on loopback, gone afterwards.

Every "machine" (the controller, and each node) is one PID, mount and UTS namespace. That is what makes the loss of a
node whole (SIGKILL of the namespace's first process takes slurmd, slurmstepd's and trainers with it, at once), gives a
node its own host name and hosts file, and leaves nothing behind. Processes outside see those inside by other numbers:
a pid that a job prints means nothing here; use `pids`."""

import contextlib
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
UNSHARE = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
# One process per namespace waits on a pipe from the tests: if they die in whatever way, it ends, and with it the rest.
MACHINE = 'hostname "$1" && mount --bind "$2" /etc/hosts || exit 1; {daemons} & read -r _; rm -rf "$3"'
FIELDS = dict(
    id="JobID",
    array="ArrayJobID",
    index="ArrayTaskID",
    name="Name",
    state="State",
    reason="Reason",
    nodes="NodeList",
    restarts="RestartCnt",
    exit="exit_code",
)

# SlurmdTimeout: a silent node is down after this, its jobs requeued. cred_expire: how long a requeued job is held
# (reason BeginTime; 120 s by default). FirstJobId: JAX derives its coordinator's port from the job's number, and two
# Slurms may run side by side. config_overrides: nodes have the CPUs said here, not the host's. Both NoInAddrAny's are
# needed to stay on loopback. RealMemory is not enforced; it only lets `--mem` pass.
CONF = """
ClusterName=test
SlurmctldHost=ctl(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={short}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={short}/%n
SlurmctldPidFile={short}/slurmctld.pid
SlurmdPidFile={short}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=2
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
FirstJobId={first}
ReturnToService=2
JobRequeue=1
InactiveLimit=0
KillWait=5
MinJobAge=3600
SlurmdTimeout=10
MessageTimeout=5
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def available() -> str:
    """Empty if a Slurm can be started here, else why not."""
    if os.geteuid():
        return "Slurm's daemons and namespaces need root"
    missing = [x for x in ("slurmctld", "slurmd", "sbatch", "munged", "unshare") if not shutil.which(x, path=PATH)]
    if missing:
        return f"no {', '.join(missing)}: apt-get install --no-install-recommends slurm-wlm munge"
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    return done.stderr.strip() or "unshare fails" if done.returncode else ""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # all open at once, so that they differ
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [x.getsockname()[1] for x in sockets]


class Slurm:
    """`with Slurm(folder) as slurm: slurm.run("sbatch", "job.sh")`; logs stay in folder/log."""

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 2, gpus: int = 0):
        self.folder = Path(folder).resolve()
        self.nodes = [f"n{i}" for i in range(nodes)]
        self.cpus, self.gpus = cpus, gpus
        self.machines: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        self.env |= dict(PATH=PATH, SLURM_CONF=str(self.folder / "slurm.conf"))

    def __enter__(self) -> "Slurm":
        for name in ("log", "state"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        # Unix sockets (munge's, and one per job step in the spool) have paths below 108 bytes, however long folder is.
        self.short = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        try:
            port, *ports = free_ports(1 + len(self.nodes))
            first = random.randrange(1, 60000)
            conf = CONF.format(port=port, first=first, short=self.short, folder=self.folder)
            for name, number in zip(self.nodes, ports, strict=True):
                conf += f"NodeName={name} NodeAddr=127.0.0.1 Port={number} CPUs={self.cpus} RealMemory=16000"
                conf += f" Gres=gpu:{self.gpus}\n" if self.gpus else "\n"
            if self.gpus:  # files stand in for them: Slurm counts devices
                conf = "GresTypes=gpu\n" + conf
                devices = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")[: self.gpus]
                (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in devices))
            (self.folder / "slurm.conf").write_text(conf)
            hosts = Path("/etc/hosts").read_text() + f"\n127.0.0.1 ctl {' '.join(self.nodes)}\n"
            (self.folder / "hosts").write_text(hosts)
            key = self.folder / "munge.key"
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(128))
            short, log = shlex.quote(str(self.short)), shlex.quote(str(self.folder / "log/munged.log"))
            munged = (
                f"munged --force --num-threads=1 --socket={short}/munge.sock --pid-file={short}/munged.pid"
                f" --seed-file={short}/munge.seed --log-file={log} --key-file={shlex.quote(str(key))} || exit 1; "
            )
            self._start("ctl", munged + "slurmctld -D")  # munged returns when its socket is there
            for name in self.nodes:
                self._start(name, f"slurmd -D -N {name}")
            self.wait(lambda: list(self.states().values()) == ["IDLE"] * len(self.nodes), 60, "all nodes idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*self.nodes, "ctl"]:
            self.kill_node(name)
        shutil.rmtree(self.short, ignore_errors=True)

    def _start(self, name: str, daemons: str) -> None:
        command = [*UNSHARE, "bash", "-c", MACHINE.format(daemons=daemons), "machine", name]
        command += [str(self.folder / "hosts"), str(self.short)]
        with (self.folder / f"log/{name}.out").open("ab") as out:
            # A session of its own: Ctrl-C is for the tests, which then stop the machines in order.
            process = subprocess.Popen(
                command, env=self.env, cwd="/", stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True
            )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        self.machines[name] = process, int(self.wait(children.read_text, 10, f"{name}'s namespace"))

    def states(self) -> dict[str, str]:
        """Of the nodes: IDLE, ALLOCATED, DOWN+NOT_RESPONDING, ...; empty while the controller is not up."""
        # Not sinfo: its short state stays "mix*" on a node that is down, until some other command asks.
        command = ["scontrol", "--oneliner", "show", "nodes"]
        out = subprocess.run(command, env=self.env, capture_output=True, text=True).stdout
        return dict(re.findall(r"^NodeName=(\S+) .*? State=(\S+)", out, re.MULTILINE))

    def run(self, *command: str, **options: Any) -> str:
        """What a Slurm command printed."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, **options)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return str(done.stdout).strip()

    def kill_node(self, name: str) -> None:
        """SIGKILL of everything on the node; returns when all of it is dead. Slurm has to find out by itself."""
        if name in self.machines:
            process, init = self.machines.pop(name)
            with contextlib.suppress(ProcessLookupError):
                os.kill(init, signal.SIGKILL)
            process.wait()  # a namespace's first process is gone only after all others in it
            assert process.stdin
            process.stdin.close()

    def start_node(self, name: str) -> None:
        """Brings a killed node back, once Slurm has missed it. A node back sooner than that (real ones boot longer than
        SlurmdTimeout) would leave its jobs hanging: Slurm does not look for a step's processes on it."""
        self.wait(lambda: "DOWN" in self.states()[name], 60, f"{name} missed")
        self._start(name, f"slurmd -D -N {name}")
        self.wait(lambda: "DOWN" not in self.states()[name], 60, f"{name} back")

    def pids(self, name: str, text: str = "") -> list[int]:
        """Processes of a node, by this host's numbers, with the text in their command line."""
        namespace, found = os.readlink(f"/proc/{self.machines[name][1]}/ns/pid"), []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended meanwhile
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if os.readlink(path / "ns/pid") == namespace and text in command:
                    found.append(int(path.name))
        return sorted(found)

    def jobs(self) -> list[dict[str, str]]:
        """All jobs, ended ones too, with the keys of FIELDS; index is "N/A" outside arrays, exit is a wait status."""
        form = ",".join(f"{x}:|" for x in FIELDS.values())
        lines = self.run("squeue", "--array", "--noheader", "--states=all", f"--Format={form}").splitlines()
        return [dict(zip(FIELDS, line.split("|"), strict=False)) for line in lines]

    def wait(self, condition: Callable[[], Any], seconds: float, what: str = "condition") -> Any:
        """The condition's first true value."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > end:
                state = subprocess.run("sinfo --Node; squeue", shell=True, env=self.env, capture_output=True, text=True)
                logs = [f"{x.name}:\n{x.read_text(errors='replace')[-2000:]}" for x in self.folder.glob("log/*")]
                raise TimeoutError("\n".join([f"not within {seconds} s: {what}", state.stdout, state.stderr, *logs]))
            time.sleep(0.2)
        return value
