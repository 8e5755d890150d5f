"""Emulated Raspberry Pis: QEMU's boards with Debian's kernel, Debian's userland, and our package on an SD card.

Debian's kernel is mainline: it prints ``Revision: 0000`` or nothing at all, so that the board is known from the device
tree alone, into which goes here what the firmware of a real board adds. There is no clock that survives power-off:
the board believes it is the day its systemd was built. The fleet server on this machine is 10.0.2.2 in there.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import selectors
import shutil
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import roots
from board_files import BOARDS, OTHER_SERIAL
from server import HOST, Fleet

HERE = Path(__file__).resolve().parent
DONE = re.compile(r"BOARD-TEST-RC=(\d+)\r?\n")
PULL_THE_PLUG = "BOARD-TEST-CUT"
RECORDED = re.compile(r"BOARD-TEST-RECORDED-BEGIN\s(.*?)\sBOARD-TEST-RECORDED-END", re.DOTALL)
BOOT_LIMIT = 900.0
CARD_MIB = 1024  # QEMU takes powers of two
MODULES = """
crc32c_generic ext4 bcm2835 sdhci_iproc phy_generic dwc2 cdc_ether rndis_host cdc_subset bcm2835_wdt bcm2835_rng
autofs4 overlay
"""
# What costs an emulated board its time and has nothing to say here.
MASKED = """
systemd-networkd-wait-online.service getty@tty1.service serial-getty@ttyAMA0.service systemd-udevd.service
systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service systemd-hwdb-update.service
systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-firstboot.service ldconfig.service
systemd-journal-catalog-update.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer
e2scrub_reap.service fstrim.timer systemd-update-utmp.service systemd-update-utmp-runlevel.service
"""
INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /new /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" 2>/dev/null; done < /modules/order
until [ -b /dev/mmcblk0 ]; do sleep 0.2; done
mount -t ext4 -o noatime /dev/mmcblk0 /new || reboot -f
tries=0
while [ ! -e /sys/class/net/usb0 ] && [ $tries -lt 50 ]; do sleep 0.2; tries=$((tries + 1)); done
ip link set usb0 up; ip addr add 10.0.2.15/24 dev usb0; ip route add default via 10.0.2.2
mount --move /dev /new/dev; umount /sys; umount /proc
exec switch_root /new /sbin/init
"""
UNIT = """\
[Unit]
Description=Board test
[Service]
Type=exec
ExecStart=/opt/on_board
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""


@dataclass(frozen=True)
class Model:
    """How QEMU and Debian know a board. ``threads``: one host thread for all cores is fastest, and Pi 2 hangs with it."""

    suite: str
    arch: str
    tree: str
    threads: str = "single"

    @property
    def qemu(self) -> str:
        return "qemu-system-aarch64" if self.arch == "arm64" else "qemu-system-arm"


MODELS = {
    "raspi0": Model("bookworm", "armel", "bcm2835-rpi-zero"),
    "raspi2b": Model("bookworm", "armhf", "bcm2836-rpi-2-b", threads="multi"),
    "raspi3b": Model("trixie", "arm64", "bcm2837-rpi-3-b"),
}


def emulated(name: str, fleet: Fleet, deb: Path, home: Path) -> Generator[tuple[str, Callable[[], object]], None, None]:
    """The steps of one board: as ``life.Life.steps``."""
    board = Board(name, home)
    yield "card made", lambda: board.make_card(fleet, deb)
    yield "installed, read itself, enrolled; then the plug is pulled", lambda: board.first(home)
    yield "the same card again: a token without anybody doing anything", board.again
    yield "the same card in another board is refused, and says so", board.elsewhere


@dataclass
class Board:
    """One emulated board and its card."""

    name: str
    home: Path
    model: Model = field(init=False)
    revision: str = field(init=False)
    serial: str = field(init=False)
    card: Path = field(init=False)

    def __post_init__(self) -> None:
        self.model = MODELS[self.name]
        self.revision, _, self.serial = BOARDS[self.name]
        self.card = self.home / "card.img"

    # The steps

    def make_card(self, fleet: Fleet, deb: Path) -> None:
        root = self.home / "root"
        root.mkdir()
        tar = roots.rootfs(self.model.suite, self.model.arch)
        subprocess.run(["tar", "-C", root, "-xf", tar, "--exclude=./dev/?*"], check=True)
        self._furnish(root, fleet, deb)
        with self.card.open("wb") as card:
            card.truncate(CARD_MIB << 20)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, self.card], check=True)
        shutil.rmtree(root)

    def first(self, home: Path) -> str:
        seen = self.boot("first", cut=True)
        recorded = RECORDED.search(seen)
        if not recorded:
            raise AssertionError("nothing was recorded: " + seen[-2000:])
        packed = base64.b64decode("".join(recorded[1].split()))
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(home / "recorded", filter="data")
        keep = os.environ.get("PI_AGENT_BOOT_RECORD")
        if keep:
            shutil.copytree(home / "recorded", Path(keep) / f"{self.name}-{self.model.suite}", dirs_exist_ok=True)
        read = json.loads(line_of(seen, '{"schema": "pi-agent.board/1"'))
        same_board(read, self.revision, self.serial)
        return f"{read['model']}, from {read['sources']['revision']}; {figures(seen)}"

    def again(self) -> str:
        seen = self.boot("again")
        return figures(seen)

    def elsewhere(self) -> str:
        seen = self.boot("elsewhere", other_serial=OTHER_SERIAL)
        return line_of(seen, "error: this identity belongs")

    # Booting

    def boot(self, stage: str, *, other_serial: str = "", cut: bool = False) -> str:
        """What the console shows until the script of ``stage`` has ended (or the plug is pulled). Raises AssertionError."""
        kernel = roots.kernel(self.model.suite, self.model.arch)
        blob, memory = self.home / "board.dtb", self.home / "initrd"
        firmware_tree(kernel, self.model.tree, self.revision, other_serial or self.serial, blob)
        initramfs(kernel, memory, self.home / "initramfs")
        words = "console=ttyAMA0,115200 panic=-1 net.ifnames=0 quiet rw systemd.show_status=0"
        # QEMU has no power manager of the SoC; the driver of Debian's kernel would panic for it.
        words += " initcall_blacklist=bcm2835_power_driver_init systemd.wants=board-test.service"
        words += f" board_test.stage={stage} board_test.now={int(time.time())}"
        command = [
            *(self.model.qemu, "-M", self.name, "-accel", f"tcg,thread={self.model.threads}"),
            *("-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"),
            *("-kernel", str(kernel / "vmlinuz"), "-initrd", str(memory), "-dtb", str(blob), "-append", words),
            *("-drive", f"if=sd,format=raw,file={self.card}"),
            *("-netdev", "user,id=n0", "-device", "usb-net,netdev=n0"),
        ]
        log = self.home / f"{stage}.log"
        seen, status = watch(command, log, PULL_THE_PLUG if cut else "")
        if status != 0:
            raise AssertionError(f"stage {stage} ended with {status}; the console's end: {seen[-3000:]}")
        return seen

    def _furnish(self, root: Path, fleet: Fleet, deb: Path) -> None:
        units = root / "etc/systemd/system"
        for unit in MASKED.split():
            if not (units / unit).is_symlink():
                (units / unit).symlink_to("/dev/null")
        texts = {
            "etc/hostname": "board\n",
            "etc/machine-id": uuid.uuid4().hex + "\n",
            "etc/hosts": f"127.0.0.1 localhost board\n10.0.2.2 {HOST}\n",
            "etc/systemd/system/board-test.service": UNIT,
            "opt/url": fleet.url,
            "opt/enrollment-token": fleet.enrollment_token(1),
            "opt/on_board": (HERE / "on_board.sh").read_text(),
            "etc/ssl/boot-test-ca.pem": fleet.ca.read_text(),
        }
        for name, text in texts.items():
            (root / name).unlink(missing_ok=True)
            (root / name).write_text(text)
        (root / "opt/on_board").chmod(0o755)
        shutil.copy(deb, root / "opt/pi-agent.deb")


def watch(command: list[str], log: Path, cut: str) -> tuple[str, int]:
    """Run QEMU until the script's exit status, or the text ``cut``, is on its console. Returns what was on it, and 0 or not."""
    seen, begun = "", time.monotonic()
    qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert qemu.stdout is not None
    try:
        with selectors.DefaultSelector() as selector, log.open("wb") as kept:
            selector.register(qemu.stdout, selectors.EVENT_READ)
            while time.monotonic() - begun < BOOT_LIMIT:
                if not selector.select(1):
                    continue
                chunk = os.read(qemu.stdout.fileno(), 65536)
                kept.write(chunk)
                kept.flush()
                seen += chunk.decode(errors="replace")
                if cut and cut in seen:
                    qemu.kill()  # what pulling the plug is
                    return seen, 0
                if found := DONE.search(seen):
                    await_power_off(qemu)
                    return seen, int(found[1])
                if not chunk:
                    break
        return seen, 124
    finally:
        qemu.kill()
        qemu.wait()


def await_power_off(qemu: subprocess.Popen[bytes]) -> None:
    """Let the board unmount its card."""
    try:
        qemu.wait(30)
    except subprocess.TimeoutExpired:
        return


def firmware_tree(kernel: Path, name: str, revision: str, serial: str, out: Path) -> None:
    """The kernel's device tree with what the board's firmware adds before it starts the kernel."""
    shutil.copy(next((kernel / "dtb").rglob(f"{name}.dtb")), out)
    for words in (
        ("-c", out, "/system"),
        ("-t", "x", out, "/system", "linux,revision", revision),
        ("-t", "x", out, "/system", "linux,serial", serial[:8], serial[8:]),
        ("-t", "s", out, "/", "serial-number", serial),
    ):
        subprocess.run(["fdtput", *words], check=True)


def initramfs(kernel: Path, out: Path, folder: Path) -> None:
    """What finds the card and the network, and goes on to the system on the card."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("bin", "modules"):
        (folder / name).mkdir(parents=True)
    shutil.copy(kernel / "busybox", folder / "bin/busybox")
    version = next((kernel / "lib/modules").iterdir()).name
    order: list[str] = []
    for module in MODULES.split():
        shown = subprocess.run(
            ["modprobe", "-d", kernel, "-S", version, "-D", module], capture_output=True, text=True, check=False
        )
        for path in re.findall(r"^insmod (\S+)", shown.stdout, re.MULTILINE):
            if Path(path).name not in order:
                order.append(Path(path).name)
                shutil.copy(path, folder / "modules")
    (folder / "modules/order").write_text("".join(f"{name}\n" for name in order))
    (folder / "init").write_text(INIT)
    (folder / "init").chmod(0o755)
    pack = f"find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 > '{out}'"
    subprocess.run(["sh", "-c", pack], cwd=folder, check=True)


def line_of(seen: str, beginning: str) -> str:
    for line in seen.splitlines():
        at = line.find(beginning)
        if at >= 0:
            return line[at:].strip()
    raise AssertionError(f"{beginning!r} was not on the console: {seen[-2000:]}")


def figures(seen: str) -> str:
    """What the script on the board has measured."""
    return "; ".join(line.strip() for line in re.findall(r"BOARD-TEST-FIGURE ([^\r\n]+)", seen))


def same_board(read: dict[str, str], revision: str, serial: str) -> None:
    if (read["revision"], read["serial"]) != (revision, serial):
        raise AssertionError(f"the board took itself for {read['revision']}, {read['serial']}")
