"""A key in a TPM: swtpm behind Debian's tpm2-pkcs11, with the commands as they are typed, at a real server (F-13)."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from device.living import eventually
from fleet.live import LiveFleet
from fleet.test_key_command import Card, card, live  # noqa: F401  # fixtures

MODULE = next(iter(Path("/usr/lib").glob("*/pkcs11/libtpm2_pkcs11.so")), None)
TCTIS = [*Path("/usr/lib").glob("*/libtss2-tcti-swtpm.so.0"), *Path("/usr/lib").glob("*/libtss2-tcti-tabrmd.so.0")]
PIN = "480-canary-713"

DBUS, BROKER = "org.freedesktop.DBus", "com.intel.tss2.Tabrmd"
NEEDED = {"swtpm": "swtpm", "tpm2-abrmd": "tpm2-abrmd", "dbus-daemon": "dbus-daemon", "dbus-send": "dbus-bin"}

# What tpm2_ptool init and addtoken do.
MAKE_TOKEN = """
import sys, PyKCS11 as api
lib = api.PyKCS11Lib()
lib.load(sys.argv[1])
slot = lib.getSlotList()[0]
lib.initToken(slot, "so-pin", "pi-agent".ljust(32))
session = lib.openSession(slot, api.CKF_SERIAL_SESSION | api.CKF_RW_SESSION)
session.login("so-pin", api.CKU_SO)
session.initPin(sys.argv[2])
"""


def missing() -> str:
    """Why there can be no TPM, or nothing."""
    packages = [package for tool, package in NEEDED.items() if not shutil.which(tool)]
    if packages or MODULE is None or len(TCTIS) < 2:
        return f"there is no TPM: apt install {' '.join((*packages, 'libtpm2-pkcs11-1', 'libtss2-tcti-tabrmd0'))}"
    if importlib.util.find_spec("PyKCS11") is None:
        return "PyKCS11 is not installed: the extra pkcs11"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@contextmanager
def switched_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A TPM whose memory is ``home``, which this test's programs find; it is off afterwards.

    In the place of the kernel, which shares a TPM's few slots out among programs (/dev/tpmrm0), there is tpm2-abrmd.
    """
    home.mkdir(exist_ok=True)
    door, bus = home / "door", f"unix:path={home / 'bus'}"
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus)
    monkeypatch.setenv("TPM2_PKCS11_TCTI", "tabrmd:bus_type=session")
    state = ["--tpmstate", f"dir={home}", "--flags", "not-need-init,startup-clear"]
    doors = ["--server", f"type=unixio,path={door}", "--ctrl", f"type=unixio,path={door}.ctrl"]
    asking = ["dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus", "/", f"{DBUS}.NameHasOwner"]
    with ExitStack() as running:
        for command in (
            ["swtpm", "socket", "--tpm2", *state, *doors],
            ["dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address={bus}"],
        ):
            running.enter_context(_running(command))
        eventually(lambda: door.exists() and (home / "bus").exists())
        running.enter_context(_running(["tpm2-abrmd", "--session", "--allow-root", f"--tcti=swtpm:path={door}"]))
        asked = [*asking, f"string:{BROKER}"]
        eventually(lambda: b"true" in subprocess.run(asked, capture_output=True, check=False).stdout, patience=60)
        yield


@contextmanager
def _running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def uri(card: Card, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:  # noqa: F811  # the fixture
    """The URI of a token in a TPM that is on; ``tpm2-pkcs11`` keeps its wrapped objects on the card."""
    store = card.home / "state/tpm"
    store.mkdir()
    monkeypatch.setenv("TPM2_PKCS11_STORE", str(store))
    monkeypatch.setenv("TSS2_LOG", "all+none")
    pin = card.home / "state/pin"
    pin.touch(mode=0o600)
    pin.write_text(PIN + "\n")
    with switched_on(card.home / "tpm", monkeypatch):
        subprocess.run([sys.executable, "-c", MAKE_TOKEN, str(MODULE), PIN], check=True, capture_output=True)
        yield f"pkcs11:token=pi-agent?module-path={MODULE}&pin-source=file:{pin}"


def protections(live: LiveFleet) -> list[str]:  # noqa: F811  # the fixture
    found = json.loads(live.cli("devices", "key:tpm", "--json").stdout)["items"]
    return [item["id"] for item in found]


def test_f13_a_key_is_made_in_the_tpm_gets_tokens_and_is_renewed(card: Card, live: LiveFleet, uri: str) -> None:  # noqa: F811
    """F-13: the key moves into the TPM, which says that it is hardware; the registry says ``tpm``; a rotation stays in there."""
    before = card.key("show")
    moved = card.key("move", "--to", uri)
    assert (moved["protection"], moved["client_id"]) == ("tpm", before["client_id"])
    assert moved["kid"] != before["kid"]
    assert before["client_id"] in protections(live)
    turned = card.key("rotate")
    assert (turned["protection"], turned["kid"] == moved["kid"]) == ("tpm", False)
    assert card.key("show") == turned


def test_f13_a_new_board_enrolls_with_a_key_of_its_tpm(card: Card, live: LiveFleet, uri: str) -> None:  # noqa: F811
    """F-13: with key.store set there never is a key in a file; wiping the identity takes the key out of the TPM."""
    assert card.run("wipe-identity", "--yes").returncode == 0
    card.put_into("00000000cccc000a")
    config = card.home / "config.toml"
    config.write_text(config.read_text() + f'\n[key]\nstore = "{uri}"\n')
    done = card.run("setup", live.issuer, "--loopback-http", "--json")
    assert done.returncode == 4, done.stderr
    assert not list((card.home / "state").glob("*.pem"))
    shown = json.loads(done.stdout)
    assert "a TPM" in live.cli("pending", shown["code"]).stdout
    assert live.cli("approve", shown["code"], "--yes", "--reason", "same words").returncode == 0
    assert card.key("rotate")["client_id"] == shown["client_id"]
    wiped = card.run("wipe-identity", "--yes")
    assert (wiped.returncode, "is left, since" in wiped.stderr) == (0, False), wiped.stderr


def test_f13_a_copy_of_the_card_has_no_key(card: Card, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """F-13: card, PIN and the module's files in a board with another TPM, or with none: nothing is signed, and it is said why."""
    card.key("move", "--to", uri)
    with switched_on(card.home / "another-tpm", monkeypatch):
        other = card.run("key", "rotate")
    monkeypatch.setenv("TPM2_PKCS11_TCTI", "swtpm:path=/nonexistent")
    none = card.run("key", "rotate")
    assert (other.returncode, none.returncode) == (1, 1)
    assert "the token refuses: CKR_" in other.stderr
    assert "does not start: CKR_" in none.stderr
    assert PIN not in other.stderr + none.stderr
