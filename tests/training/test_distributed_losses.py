"""Trainings that lose a process or a host: torchrun starts again what is left, which goes on from the latest checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_distributed import NERF

STEPS, RAYS, SAVE = 400, 67, 20
WORDS = [*NERF, "--steps", str(STEPS), "--device", "cpu", "--threads", "1", "--no-evaluate", "--out", "run"]
WORDS += ["--log.save-every", str(SAVE), "--log.image-every", "0", "--log.print-every", "1"]
PATIENCE = 600


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def saved(folder: Path) -> bool:
    """Whether there is a checkpoint of step 40 or later."""
    return any(int(path.stem.removeprefix("step_")) >= 2 * SAVE for path in (folder / "checkpoints").glob("step_*.safetensors"))


def descendants(parent: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    listed = Path(f"/proc/{parent}/task/{parent}/children")
    children = [int(word) for word in listed.read_text().split()] if listed.exists() else []
    return children + [pid for child in children for pid in descendants(child)]


def assert_it_went_on(folder: Path) -> None:
    """To the end, with each step's rays counted once, from checkpoints and not from the beginning."""
    train = json.loads((folder / "metrics.json").read_text())["train"]
    assert train["steps"] == STEPS and train["rays"] == RAYS * STEPS
    starts = []
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime):
        log = EventAccumulator(str(path))
        log.Reload()
        starts += [log.Scalars("loss/rgb")[0].step] if "loss/rgb" in log.Tags()["scalars"] else []
    assert starts[0] == 1 and len(starts) > 1 and all(step > SAVE and step % SAVE == 1 for step in starts[1:])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")
def test_a_killed_process_is_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nerfit", "train", *WORDS, "--devices", "2"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as training:
        wait_for(lambda: saved(tmp_path / "run") or training.poll() is not None)
        workers = [pid for pid in descendants(training.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(workers[-1], signal.SIGKILL)
        _, said = training.communicate(timeout=PATIENCE)
    assert training.returncode == 0, said
    assert_it_went_on(tmp_path / "run")


HOSTS = ("nerfit-a", "nerfit-b")


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by a cable, 10.99.0.1 and 10.99.0.2."""
    ip = shutil.which("ip") or "ip"
    made = [*(["netns", "add", host] for host in HOSTS)]
    made += [["link", "add", "cable-a", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable-b", "netns", HOSTS[1]]]
    for number, host in enumerate(HOSTS):
        cable = f"cable-{host[-1]}"
        made += [["-n", host, "addr", "add", f"10.99.0.{number + 1}/24", "dev", cable]]
        made += [["-n", host, "link", "set", name, "up"] for name in (cable, "lo")]
    try:
        for words in made:
            done = subprocess.run([ip, *words], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"ip {' '.join(words)} failed here: {done.stderr.strip()}")
        yield HOSTS
    except FileNotFoundError:
        pytest.skip("there is no ip command (iproute2)")
    finally:
        for host in HOSTS if shutil.which("ip") else ():
            subprocess.run([ip, "netns", "del", host], capture_output=True, check=False)


def sent_bytes(host: str) -> int:
    """What a host has sent through its cable."""
    shown = subprocess.run(["ip", "-n", host, "-s", "-j", "link", "show", f"cable-{host[-1]}"], capture_output=True, text=True, check=True)
    return json.loads(shown.stdout)[0]["stats64"]["tx"]["bytes"]


@pytest.mark.slow
def test_a_host_that_is_cut_off_is_done_without(tmp_path: Path, hosts: tuple[str, str]) -> None:
    """Two hosts train; the second's cable is pulled and its processes die, and the first goes on alone."""
    running = []
    for number, host in enumerate(hosts):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "10.99.0.1:29400", "--rdzv-id", "two-hosts"]
        torchrun += ["--rdzv-conf", f"last_call_timeout=10,is_host={int(number == 0)}"]
        torchrun += ["--local-addr", f"10.99.0.{number + 1}", "-m", "nerfit", "train", *WORDS]
        env = os.environ | {"GLOO_SOCKET_IFNAME": f"cable-{host[-1]}", "NERFIT_PATIENCE": "15", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (tmp_path / f"{host}.log").open("w") as log:
            command = ["ip", "netns", "exec", host, *torchrun]
            running.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=subprocess.STDOUT))
        wait_for(lambda: sent_bytes(hosts[0]) > 0 or len(running) == 1)
    try:
        wait_for(lambda: saved(tmp_path / "run") or any(each.poll() is not None for each in running))
        assert sent_bytes(hosts[1]) > 2 * SAVE * 4000
        subprocess.run(["ip", "-n", hosts[1], "link", "set", "cable-b", "down"], check=True)
        for pid in [*descendants(running[1].pid), running[1].pid]:
            os.kill(pid, signal.SIGKILL)
        code = running[0].wait(PATIENCE)
    finally:
        for each in running:
            for pid in [*descendants(each.pid), each.pid] if each.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
    assert code == 0, (tmp_path / f"{hosts[0]}.log").read_text()[-3000:]
    assert_it_went_on(tmp_path / "run")
