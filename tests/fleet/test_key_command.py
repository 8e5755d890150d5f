"""``pi-agent key``, ``first-boot`` and ``wipe-identity`` as they are typed, at a real server in a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from device import rpi_fw_crypto
from fleet.live import LiveFleet

AGENT = [sys.executable, "-c", "import sys; from pi_agent.device.cli import main; sys.exit(main())"]
CPUINFO = Path(__file__).parents[2] / "fixtures/cpuinfo/2b-a01041-4.1-32bit.txt"
TOKEN = "canary-enrollment-token"


class Card:
    """A card in a folder, in a board with ``serial``."""

    def __init__(self, home: Path, serial: str) -> None:
        self.home = home
        (home / "root/proc/sys/kernel/random").mkdir(parents=True, exist_ok=True)
        self.put_into(serial)

    def put_into(self, serial: str) -> None:
        lines = CPUINFO.read_text().splitlines()
        kept = [line for line in lines if not line.startswith("Serial")]
        (self.home / "root/proc/cpuinfo").write_text("\n".join([*kept, f"Serial\t\t: {serial}"]) + "\n")
        (self.home / "root/proc/sys/kernel/random/boot_id").write_text(secrets.token_hex(16))

    def run(self, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
        folders = [f"--{name}={self.home / name}" for name in ("state", "runtime", "root")]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PI_AGENT_")}
        return subprocess.run(
            [*AGENT, f"--config={self.home / 'config.toml'}", *folders, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=kept | {"PATH": f"{path}:{os.environ['PATH']}"},
        )

    def key(self, *words: str, path: str = "") -> dict[str, object]:
        done = self.run("key", *words, "--json", path=path)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    fleet = LiveFleet(tmp_path_factory.mktemp("keys") / "data", "--no-rate-limit")
    yield fleet
    fleet.stop()


@pytest.fixture
def card(live: LiveFleet, tmp_path: Path) -> Card:
    """A card that was set up and approved by its code."""
    card = Card(tmp_path / "card", f"{secrets.randbits(40):016x}")
    done = card.run("setup", live.issuer, "--loopback-http", "--json")
    assert done.returncode == 4, done.stderr
    shown = json.loads(done.stdout)
    pending = json.loads(live.cli("pending", shown["code"], "--json").stdout)["items"][0]
    assert (pending["id"], pending["words"]) == (shown["client_id"], shown["words"])
    assert live.cli("approve", shown["code"], "--yes", "--reason", "same words").returncode == 0
    return card


def test_a_key_is_shown_rotated_and_shown_again(card: Card, live: LiveFleet) -> None:
    """A new key, the same device; the registry has one key that speaks."""
    before = card.key("show")
    after = card.key("rotate")
    assert (before["client_id"], before["kid"] != after["kid"]) == (after["client_id"], True)
    assert card.key("show") == after
    text = card.run("key", "show").stdout
    assert str(after["words"]) in text
    assert "whoever copies the card" in text


def test_a_key_moves_into_the_firmware_and_the_registry_says_so(card: Card, live: LiveFleet, tmp_path: Path) -> None:
    """The protection is in the assertion, the registry and the query language, under one word."""
    tool = rpi_fw_crypto.install(tmp_path / "fw", slots=(1,))
    moved = card.key("move", "--to", "firmware", path=str(tool.parent))
    assert (moved["store"], moved["protection"]) == ("firmware:1", "firmware-otp")
    found = json.loads(live.cli("devices", "key:firmware", "--json").stdout)["items"]
    assert [item["id"] for item in found] == [moved["client_id"]]
    refused = card.run("key", "rotate", path=str(tool.parent))
    assert (refused.returncode, "key move --to file" in refused.stderr) == (2, True)
    assert card.key("move", "--to", "file", path=str(tool.parent))["protection"] == "file"


def test_a_store_that_is_not_there_changes_nothing(card: Card) -> None:
    """Without the firmware's tool the key stays where it is, and nothing is begun."""
    before = card.key("show")
    done = card.run("key", "move", "--to", "firmware")
    assert done.returncode == 1
    assert done.stderr.startswith("error: rpi-fw-crypto is not installed\nhint: sudo apt install")
    assert card.key("show") == before


def test_a_copied_card_in_another_board(card: Card, live: LiveFleet) -> None:
    """RA-25: run refuses, says whose identity it is and what to type; typing that enrolls this board as itself."""
    first = card.key("show")
    card.put_into("00000000cccc0003")
    assert "note: this identity belongs to the board" in card.run("key", "show").stderr
    refused = card.run("run")
    assert (refused.returncode, refused.stderr.count(str(first["serial"]))) == (2, 1)
    assert f" --state {card.home}/state " in refused.stderr and f" setup {live.issuer}" in refused.stderr
    assert card.run("setup", live.issuer, "--loopback-http").returncode == 4
    second = card.key("show")
    assert second["client_id"] != first["client_id"]
    assert second["set_aside"] == [first["serial"]]
    card.put_into(str(first["serial"]))
    assert card.run("setup", live.issuer, "--loopback-http").returncode == 0
    assert card.key("show")["kid"] == first["kid"]


def test_f11_an_image_has_no_identity_and_its_board_does_not_enroll(card: Card, live: LiveFleet) -> None:
    """F-11: after wiping for an image there is the marker alone; the same card in another board enrolls."""
    assert card.run("wipe-identity", "--yes", "--golden-image").returncode == 0
    assert [path.name for path in (card.home / "state").rglob("*") if path.is_file()] == ["golden-image"]
    for words in (("setup", live.issuer, "--loopback-http"), ("first-boot",)):
        assert card.run(*words).returncode in (2, 3)
    assert not list((card.home / "state").glob("*.json"))
    card.put_into("00000000cccc0004")
    assert card.run("setup", live.issuer, "--loopback-http").returncode == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be root")
def test_f11_root_makes_an_image_of_a_card_whose_state_is_the_services(live: LiveFleet) -> None:
    """F-11: sudo pi-agent wipe-identity in a folder of the service's user: wiped, and the marker is the service's to read."""
    with tempfile.TemporaryDirectory() as folder:  # below pytest's own folders nobody else can even look
        Path(folder).chmod(0o755)
        card = Card(Path(folder), "00000000cccc0008")
        state = card.home / "state"
        state.mkdir(mode=0o700)
        os.chown(state, 65534, 65534)
        assert card.run("setup", live.issuer, "--loopback-http").returncode == 4
        done = card.run("wipe-identity", "--yes", "--golden-image")
        assert done.returncode == 0, done.stderr
        assert {(path.name, path.stat().st_uid) for path in state.iterdir()} == {("golden-image", 65534)}
        assert "made into an image" in card.run("setup", live.issuer, "--loopback-http").stderr
        card.put_into("00000000cccc0009")
        assert card.run("setup", live.issuer, "--loopback-http").returncode == 4


def test_f11_what_the_copies_are_to_take_over_stays_for_them(card: Card, tmp_path: Path) -> None:
    """F-11: on the board of the image a pi-agent.toml is left alone, and no enrollment token gets into the state."""
    (card.home / "state/enrollment-token").write_text(TOKEN)
    assert card.run("wipe-identity", "--yes", "--golden-image").returncode == 0
    boot = tmp_path / "pi-agent.toml"
    boot.write_text(f'[server]\nissuer = "https://fleet.test"\n[enrollment]\ntoken = "{TOKEN}"\n')
    done = card.run("first-boot", str(boot))
    assert (done.returncode, "made into an image" in done.stderr) == (2, True)
    assert TOKEN in boot.read_text()
    assert [path.name for path in (card.home / "state").iterdir()] == ["golden-image"]


def test_the_first_boot_takes_over_erases_and_enrolls(live: LiveFleet, tmp_path: Path) -> None:
    """The file is taken over once; the token approves the board, and is nowhere on the card afterwards."""
    token = live.cli("enrollment-token").stdout.strip()
    card = Card(tmp_path / "card", "00000000cccc0005")
    boot = tmp_path / "pi-agent.toml"
    text = (
        f'name = "porch"\n[server]\nissuer = "{live.issuer}"\nloopback_http = true\n[enrollment]\ntoken = "{token}"\n'
    )
    boot.write_text(text)
    done = card.run("first-boot", str(boot))
    assert done.returncode == 0, done.stderr
    assert "took over" in done.stderr
    assert token not in done.stderr + done.stdout
    assert not any(token in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert (tmp_path / "pi-agent.toml.taken").exists()
    assert card.run("first-boot", str(boot)).returncode == 3
    found = json.loads(live.cli("devices", "serial:00000000cccc0005", "--json").stdout)["items"]
    assert [(item["name"], item["status"]) for item in found] == [("porch", "approved")]


def test_a_first_boot_without_a_server_is_tried_again(live: LiveFleet, tmp_path: Path) -> None:
    """No network yet: exit code 5, the token waits on the card's own file system, and the next try uses it up."""
    token = live.cli("enrollment-token").stdout.strip()
    card = Card(tmp_path / "card", "00000000cccc0006")
    boot = tmp_path / "pi-agent.toml"
    boot.write_text(f'[server]\nissuer = "http://127.0.0.1:9"\nloopback_http = true\n[enrollment]\ntoken = "{token}"\n')
    assert card.run("first-boot", str(boot)).returncode == 5
    assert token not in (tmp_path / "pi-agent.toml.taken").read_text()
    config = card.home / "config.toml"
    config.write_text(config.read_text().replace("http://127.0.0.1:9", live.issuer))
    assert card.run("first-boot", str(boot)).returncode == 0
    assert not (card.home / "state/enrollment-token").exists()


def test_a_mistake_in_the_file_leaves_it_as_it_is(tmp_path: Path) -> None:
    """A setting that cannot be: exit code 2, its name, and the file untouched with its token."""
    card = Card(tmp_path / "card", "00000000cccc0007")
    boot = tmp_path / "pi-agent.toml"
    boot.write_text(f'[server]\nisuer = "https://fleet.test"\n[enrollment]\ntoken = "{TOKEN}"\n')
    before = boot.read_bytes()
    done = card.run("first-boot", str(boot))
    assert (done.returncode, "server.isuer cannot be set here" in done.stderr, TOKEN in done.stderr) == (2, True, False)
    assert boot.read_bytes() == before
