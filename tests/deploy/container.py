"""The container image, built by buildah from the Dockerfile, and run by chroot: no registry, no daemon.

Its base image cannot be had without one: a minimal Debian of the same release, with Debian's Python, stands
in for it.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.deploy.deploy_files import DOCKERFILE, docker_steps
from tests.root import ROOT

TOOLS = ("mmdebstrap", "buildah", "unshare", "nsenter", "ip")
# How this machine reaches its package indexes, for the build's pip.
REGISTRY_ACCESS = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
# A root that cannot be written, a network of its own, /tmp as `--tmpfs /tmp` would give it.
START = """
set -e
ip link set lo up
mount --bind "$0" "$0"
mount -t proc proc "$0/proc"
mount -t tmpfs tmpfs "$0/tmp"
mount --rbind /dev "$0/dev"
for pair in $MOUNTS; do mount --bind "${pair%%:*}" "$0${pair#*:}"; done
mount -o remount,bind,ro "$0"
exec chroot "$0" setpriv --reuid="${USERSPEC%:*}" --regid="${USERSPEC#*:}" --clear-groups --no-new-privs \\
  --bounding-set=-all "$@"
"""


@dataclass(frozen=True)
class Image:
    """A built image, unpacked.

    Attributes:
        root: its files.
        config: what the Dockerfile says of running it, in Docker's words.
    """

    root: Path
    config: dict[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of its processes."""
        return dict(line.split("=", 1) for line in self.config["Env"])

    def start(self, arguments: list[str], mounts: dict[Path, str]) -> subprocess.Popen[str]:
        """Run it with these arguments in place of CMD; what it prints can be read."""
        for target in mounts.values():
            place = self.root / target[1:]
            place.parent.mkdir(exist_ok=True, parents=True)
            place.touch() if target.endswith(".json") else place.mkdir(exist_ok=True)
        pairs = " ".join(f"{source}:{target}" for source, target in mounts.items())
        command = [
            "unshare",
            "--mount",
            "--pid",
            "--net",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            START,
            str(self.root),
        ]
        return subprocess.Popen(
            [*command, *self.config["Entrypoint"], *arguments],
            env=self.environment | {"MOUNTS": pairs, "USERSPEC": self.config["User"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def execute(self, process: psutil.Process, command: list[str]) -> subprocess.CompletedProcess[str]:
        """A command beside the first process, as `docker exec` would."""
        enter = ["nsenter", "--target", str(process.pid), "--mount", "--pid", "--net", "--root", "--wd"]
        return subprocess.run(
            [*enter, *command], env=self.environment, capture_output=True, text=True, check=False
        )


def build_image(folder: Path) -> Image:
    """Make the base, build the Dockerfile on it, unpack the image; all of it lies in `folder`."""
    storage = folder / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/store"\nrunroot = "{folder}/run"\n')
    environment = os.environ | {"CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}

    def buildah(*words: str) -> str:
        return _run(["buildah", *words], environment)

    base = _base_name()
    release = base.rpartition("-")[2]
    hook = 'ln -s /usr/bin/python3 "$1/usr/local/bin/python"'
    packages = "--include=ca-certificates,python3-venv"
    archive = str(folder / "base.tar")
    _run(
        ["mmdebstrap", "--variant=minbase", packages, f"--customize-hook={hook}", release, archive],
        environment,
    )
    scratch = buildah("from", "scratch")
    buildah("add", "--quiet", scratch, archive, "/")
    buildah("config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", scratch)
    buildah("commit", "--quiet", scratch, f"localhost/{base}")
    access = [f"--volume={path}:{path}:ro" for path in REGISTRY_ACCESS if Path(path).exists()]
    files = [f"--file={DOCKERFILE}", f"--ignorefile={DOCKERFILE}.dockerignore"]
    buildah("build", "--format=docker", "--pull-never", *access, *files, "--tag=kvfold", str(ROOT))
    inspected = json.loads(buildah("inspect", "--type=image", "kvfold"))
    container = buildah("from", "--pull-never", "kvfold")
    return Image(Path(buildah("mount", container)), inspected["Docker"]["config"])


def _base_name() -> str:
    """The image that every stage starts from."""
    (name,) = {rest.split()[0] for word, rest in docker_steps() if word == "FROM"}
    return name


def _run(command: list[str], environment: dict[str, str]) -> str:
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return run.stdout.strip()
