"""Put devices into a fleet. fill.py DATA ROWS [DATABASE_URL], where ROWS is JSON: [[client_id, kid, jwk], ...]"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from pi_agent.fleet import folder, settings

os.umask(0o077)
data, rows = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
folder.prepare(data)
settings.configure(settings.Settings(data=data, issuer="https://fleet.test", database_url=sys.argv[3]))
settings.migrate()

from pi_agent.fleet.models import Device, DeviceKey  # noqa: E402  # Django had to be set up first

BOARD = {
    "revision": "a01041",
    "model": "2B",
    "model_key": "2b",
    "memory_mib": 1024,
    "soc": "BCM2836",
    "pcb_revision": "1.1",
}
now = int(time.time())
Device.objects.bulk_create(
    (
        Device(
            client_id=client_id,
            name=client_id,
            name_key=client_id,
            status="approved",
            scopes="device",
            serial=client_id[3:],
            created_at=now,
            **BOARD,
        )
        for client_id, _, _ in rows
    ),
    batch_size=900,
)
known = dict(Device.objects.values_list("client_id", "pk"))
DeviceKey.objects.bulk_create(
    (
        DeviceKey(device_id=known[client_id], kid=kid, alg="ES256", jwk=json.dumps(jwk), created_at=now)
        for client_id, kid, jwk in rows
    ),
    batch_size=900,
)
