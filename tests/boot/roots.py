"""Root file systems and kernels for the boot tests: Debian's own packages, fetched once and kept in ``CACHE``.

The mirror is the one that this machine's apt is set up with. Nothing on this machine is changed: a foreign root file
system is unpacked through qemu-user in a namespace (``binfmt.py``), and apt works on lists and a status of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("PI_AGENT_LAB") or Path.home() / ".cache" / "pi-agent-lab")
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "iproute2", "kmod", "ca-certificates"),
    *("python3", "python3-requests-oauthlib", "python3-jwt", "python3-cryptography"),  # the agent's dependencies
    *("curl", "strace"),  # what the tests themselves use
)
LEAVE_OUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
KEEP = ("/usr/share/doc/pi-agent/*", "/usr/share/man/man?/pi-*")
KERNELS = {"armel": "linux-image-rpi", "armhf": "linux-image-armmp", "arm64": "linux-image-arm64"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def native() -> str:
    return output("dpkg", "--print-architecture").strip()


def mirror() -> str:
    """The Debian archive of this machine's apt, security and other archives aside."""
    sites = output("apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN)", "Created-By: Packages").splitlines()
    return next(
        line.split()[0] for line in sites if line.endswith(" Debian") and not line.split()[0].endswith("-security")
    )


def rootfs(suite: str, arch: str, kind: str = "", more: tuple[str, ...] = ()) -> Path:
    """A tar of a small Debian with systemd, Python and the agent's dependencies. 20 s at home, minutes for ARM.

    One with ``more`` packages is of another ``kind``.
    """
    tar = CACHE / f"{suite}-{arch}{kind}.tar"
    if tar.exists():
        return tar
    CACHE.mkdir(parents=True, exist_ok=True)
    part = tar.with_suffix(".part")
    foreign = [sys.executable, str(HERE / "binfmt.py")] if arch != native() else []
    options = [f"--dpkgopt=path-exclude={path}" for path in LEAVE_OUT] + [f"--dpkgopt=path-include={p}" for p in KEEP]
    command = [
        *("mmdebstrap", "--quiet", "--mode=root", "--skip=check/qemu", "--format=tar", "--variant=minbase"),
        *(f"--architectures={arch}", f"--include={','.join((*PACKAGES, *more))}", '--aptopt=APT::Sandbox::User "root"'),
        *(*options, suite, str(part), mirror()),
    ]
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # another Python first on PATH would be run inside
    try:
        subprocess.run(foreign + command, check=True, env=os.environ | path)
        part.rename(tar)
    finally:
        part.unlink(missing_ok=True)
    return tar


def tree(tar: Path) -> Path:
    """The tar, unpacked beside it (device nodes left out: the container brings its own)."""
    folder = tar.with_suffix(".d")
    if not folder.exists():
        part = tar.with_suffix(".d.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        subprocess.run(["tar", "-C", part, "-xf", tar, "--exclude=./dev/?*"], check=True)
        part.rename(folder)
    return folder


def kernel(suite: str, arch: str) -> Path:
    """A folder with ``vmlinuz``, ``lib/modules``, ``dtb`` and a static ``busybox`` of ``arch``."""
    folder = CACHE / f"kernel-{suite}-{arch}"
    if folder.exists():
        return folder
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "deb").mkdir(parents=True)
    apt = _foreign_apt(suite, arch)
    subprocess.run([*apt, "-qq", "update"], check=True)
    depends = output("apt-cache", *apt[1:], "depends", KERNELS[arch]).split()
    image = next(word for word in depends if word.startswith("linux-image-") and word != KERNELS[arch])
    subprocess.run([*apt, "-qq", "download", image, "busybox-static"], check=True, cwd=part / "deb")
    for deb in (part / "deb").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb, part / "x"], check=True)
    _keep_what_boots(part)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part.rename(folder)
    return folder


def _keep_what_boots(part: Path) -> None:
    unpacked = part / "x"
    next(unpacked.glob("boot/vmlinuz-*")).rename(part / "vmlinuz")
    next(path for path in (unpacked / "bin/busybox", unpacked / "usr/bin/busybox") if path.exists()).rename(
        part / "busybox"
    )
    libraries = unpacked / "lib" if (unpacked / "lib/modules").is_dir() else unpacked / "usr/lib"
    (part / "lib").mkdir()
    (libraries / "modules").rename(part / "lib/modules")
    trees = [path for lib in ("lib", "usr/lib") for path in unpacked.glob(f"{lib}/linux-image-*")]
    trees[0].rename(part / "dtb")
    version = next((part / "lib/modules").iterdir()).name
    subprocess.run(["depmod", "-b", part, version], check=True)
    shutil.rmtree(part / "deb")
    shutil.rmtree(unpacked)


def _foreign_apt(suite: str, arch: str) -> list[str]:
    """An apt-get for another suite and architecture, with lists and a status of its own."""
    base = CACHE / f"apt-{suite}-{arch}"
    for folder in ("lists/partial", "archives/partial", "etc"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "status").touch()
    (base / "etc/sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
    settings = {
        "APT::Architecture": arch,
        "APT::Architectures::": arch,
        "APT::Sandbox::User": "root",
        "Dir::State": str(base),
        "Dir::State::status": str(base / "status"),
        "Dir::Cache": str(base),
        "Dir::Etc::sourcelist": str(base / "etc/sources.list"),
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferencesparts": "-",
    }
    return ["apt-get", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
