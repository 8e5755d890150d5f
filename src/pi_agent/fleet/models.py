"""What the fleet remembers, as tables.

Rules: machine times are whole seconds since 1970 (UTC); what is not known is NULL, and nothing else is; a secret that
somebody else keeps (enrollment token, sign-in link) is here only as its SHA-256. Each ``*_key`` column is the text
beside it as ``catalogue.fold`` makes it, since that is the form in which text is compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import connection, models
from django.db.models import CheckConstraint, Index, Manager, Q, UniqueConstraint
from django.utils.functional import cached_property

from pi_agent.catalogue import PROTECTIONS, STATUSES

if TYPE_CHECKING:  # what a field takes and gives, for the type checker alone
    from django.db.models.fields.related_descriptors import RelatedManager

    Text = models.CharField[str, str]
    MaybeText = models.CharField[str | None, str | None]
    LongText = models.TextField[str, str]
    Number = models.IntegerField[int, int]
    MaybeNumber = models.IntegerField[int | None, int | None]
    Seconds = models.BigIntegerField[int, int]
    MaybeSeconds = models.BigIntegerField[int | None, int | None]
    Flag = models.BooleanField[bool, bool]
    MaybeFlag = models.BooleanField[bool | None, bool | None]


def secret_hash(secret: str) -> str:
    """How a secret that somebody else keeps is remembered: it has too many random bits to be found by trying (C-11)."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


class Device(models.Model):
    """A board with an identity. ``flag`` says why an operator should look twice; ``scopes`` are separated by spaces.

    ``token_until`` is when the last of its access tokens ends. ``rhythm`` is how often it usually authenticates and
    ``rhythm_spread`` how far it strays from that, both in seconds, as seen until its token at ``rhythm_at``; after
    ``due_at`` it is late.

    ``boot`` names the boot it last spoke from, ``boot_first_at`` when that boot was first heard of, ``boot_source`` from
    where it speaks. ``clone_at`` is when it was last seen in two places (``clones``), ``rotation_at`` when an operator
    asked it for a new key.
    """

    objects: ClassVar[Manager[Device]] = Manager()
    keys: RelatedManager[DeviceKey]
    tags: RelatedManager[DeviceTag]
    boots: RelatedManager[DeviceBoot]

    client_id: Text = models.CharField(max_length=64, unique=True)
    name: Text = models.CharField(max_length=64)
    name_key: Text = models.CharField(max_length=64)
    status: Text = models.CharField(max_length=16, default="pending")
    status_reason: LongText = models.TextField(default="")
    flag: LongText = models.TextField(default="")
    scopes: LongText = models.TextField(default="")

    serial: MaybeText = models.CharField(max_length=64, null=True)
    revision: MaybeText = models.CharField(max_length=64, null=True)
    model: MaybeText = models.CharField(max_length=64, null=True)
    model_key: MaybeText = models.CharField(max_length=64, null=True)
    memory_mib: MaybeNumber = models.IntegerField(null=True)
    soc: MaybeText = models.CharField(max_length=64, null=True)
    pcb_revision: MaybeText = models.CharField(max_length=64, null=True)
    maker: MaybeText = models.CharField(max_length=64, null=True)
    overvoltage: MaybeFlag = models.BooleanField(null=True)
    warranty: MaybeFlag = models.BooleanField(null=True)
    simulated: Flag = models.BooleanField(default=False)

    key_protection: Text = models.CharField(max_length=16, default="file")
    agent_version: MaybeText = models.CharField(max_length=64, null=True)

    created_at: Seconds = models.BigIntegerField()
    auth_at: MaybeSeconds = models.BigIntegerField(null=True)
    seen_at: MaybeSeconds = models.BigIntegerField(null=True)
    refused_at: MaybeSeconds = models.BigIntegerField(null=True)
    refused_reason: LongText = models.TextField(default="")
    token_until: MaybeSeconds = models.BigIntegerField(null=True)

    rhythm: MaybeSeconds = models.BigIntegerField(null=True)
    rhythm_spread: MaybeSeconds = models.BigIntegerField(null=True)
    rhythm_at: MaybeSeconds = models.BigIntegerField(null=True)
    due_at: MaybeSeconds = models.BigIntegerField(null=True)

    boot: MaybeText = models.CharField(max_length=43, null=True)
    boot_first_at: MaybeSeconds = models.BigIntegerField(null=True)
    boot_source: Text = models.CharField(max_length=64, default="")
    clone_at: MaybeSeconds = models.BigIntegerField(null=True)
    rotation_at: MaybeSeconds = models.BigIntegerField(null=True)

    class Meta:
        constraints: ClassVar = [
            CheckConstraint(condition=Q(status__in=STATUSES), name="device_status"),
            CheckConstraint(condition=Q(key_protection__in=PROTECTIONS), name="device_key_protection"),
        ]
        # The row id at the end is the tie-break of a page. The index of boards has none: many entries are the same without
        # it, and PostgreSQL keeps and counts those together. The status makes the tabs of a query of boards cheap.
        indexes: ClassVar = [
            Index(fields=["model_key", "memory_mib", "auth_at", "status"], name="device_board_auth"),
            *(
                Index(fields=[column, "id"], name=f"device_{column}")
                for column in (
                    "name_key", "model_key", "memory_mib", "serial", "status", "auth_at", "seen_at", "refused_at",
                    "created_at", "due_at",
                )
            ),
        ]  # fmt: skip

    @cached_property
    def tag_names(self) -> list[str]:
        """Sorted."""
        return list(self.tags.order_by("tag_key").values_list("tag", flat=True))

    @cached_property
    def speaking_keys(self) -> list[tuple[str, str, int, bool]]:
        """(kid, alg, created_at, waits for its first use) of the keys that are not retired, the oldest first."""
        found = self.keys.filter(retired_at=None).order_by("pk")
        return [(kid, alg, at, until is not None) for kid, alg, at, until in found.values_list(*KEY_COLUMNS)]


class DeviceTag(models.Model):
    """A tag that an operator gave a device."""

    objects: ClassVar[Manager[DeviceTag]] = Manager()

    device: models.ForeignKey[Device, Device] = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="tags")
    tag: Text = models.CharField(max_length=64)
    tag_key: Text = models.CharField(max_length=64)

    class Meta:
        constraints: ClassVar = [UniqueConstraint(fields=["device", "tag_key"], name="device_tag_once")]
        indexes: ClassVar = [Index(fields=["tag_key", "device"], name="device_tag_key")]


class DeviceBoot(models.Model):
    """A boot that a device spoke from before the present one. It never returns, unless there are two of the device."""

    objects: ClassVar[Manager[DeviceBoot]] = Manager()

    device: models.ForeignKey[Device, Device] = models.ForeignKey(
        Device, on_delete=models.CASCADE, related_name="boots"
    )
    boot: Text = models.CharField(max_length=43)
    first_at: Seconds = models.BigIntegerField()
    last_at: Seconds = models.BigIntegerField()
    source: Text = models.CharField(max_length=64)

    class Meta:
        constraints: ClassVar = [UniqueConstraint(fields=["device", "boot"], name="device_boot_once")]
        indexes: ClassVar = [Index(fields=["device", "last_at"], name="device_boot_last_at")]


class DeviceKey(models.Model):
    """A public key that speaks for a device until ``retired_at``. ``kid`` is its RFC 7638 thumbprint, ``jwk`` JSON text.

    ``pending_until`` is the end of the overlap for a key that was signed in by rotation and has not been used yet; its
    first use makes it the only one (``rotation``).
    """

    objects: ClassVar[Manager[DeviceKey]] = Manager()

    device: models.ForeignKey[Device, Device] = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="keys")
    kid: Text = models.CharField(max_length=43, unique=True)
    alg: Text = models.CharField(max_length=8)
    jwk: LongText = models.TextField()
    created_at: Seconds = models.BigIntegerField()
    retired_at: MaybeSeconds = models.BigIntegerField(null=True)
    pending_until: MaybeSeconds = models.BigIntegerField(null=True)


KEY_COLUMNS = ("kid", "alg", "created_at", "pending_until")
AT_ONCE = 500
TAGS_OF = "SELECT device_id, tag FROM fleet_devicetag WHERE device_id IN ({}) ORDER BY tag_key"
KEYS_OF = f"""
    SELECT device_id, {", ".join(KEY_COLUMNS)} FROM fleet_devicekey
    WHERE device_id IN ({{}}) AND retired_at IS NULL ORDER BY id"""  # noqa: S608  # constants


def with_parts(rows: Iterable[Device]) -> list[Device]:
    """Devices with their keys and tags, asked for at once, and in plain SQL: a query set needs longer to write the row
    ids down than the database to find them."""
    devices = list(rows)
    for start in range(0, len(devices), AT_ONCE):
        some = {device.pk: device for device in devices[start : start + AT_ONCE]}
        for device in some.values():
            device.tag_names, device.speaking_keys = [], []
        for pk, tag in _parts(TAGS_OF, some):
            some[pk].tag_names.append(tag)
        for pk, kid, alg, at, until in _parts(KEYS_OF, some):
            some[pk].speaking_keys.append((kid, alg, at, until is not None))
    return devices


def _parts(statement: str, devices: Collection[int]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement.format(", ".join(["%s"] * len(devices))), list(devices))
        return list(cursor.fetchall())


class Preauthorisation(models.Model):
    """A board (``serial``) or a key (``kid``) that an operator approved before it enrolled; good for one device."""

    objects: ClassVar[Manager[Preauthorisation]] = Manager()

    serial: MaybeText = models.CharField(max_length=64, null=True)
    kid: MaybeText = models.CharField(max_length=43, null=True)
    name: Text = models.CharField(max_length=64, default="")
    created_at: Seconds = models.BigIntegerField()
    created_by: Text = models.CharField(max_length=128)
    expires_at: Seconds = models.BigIntegerField()
    used_at: MaybeSeconds = models.BigIntegerField(null=True)
    device: Text = models.CharField(max_length=64, default="")

    class Meta:
        constraints: ClassVar = [
            UniqueConstraint(fields=["serial"], condition=Q(used_at=None), name="preauthorised_serial_once"),
            UniqueConstraint(fields=["kid"], condition=Q(used_at=None), name="preauthorised_kid_once"),
        ]


class EnrollmentToken(models.Model):
    """Authority to enroll ``uses_left`` more devices, or the one board with ``serial``."""

    objects: ClassVar[Manager[EnrollmentToken]] = Manager()

    token_hash: Text = models.CharField(max_length=64, unique=True)
    uses_left: Number = models.IntegerField()
    serial: MaybeText = models.CharField(max_length=64, null=True)
    created_at: Seconds = models.BigIntegerField()
    created_by: Text = models.CharField(max_length=64)
    expires_at: Seconds = models.BigIntegerField()


class UsedAssertion(models.Model):
    """A statement that was believed once, remembered for as long as it could be believed again (RFC 7523 section 3)."""

    objects: ClassVar[Manager[UsedAssertion]] = Manager()

    issuer: Text = models.CharField(max_length=128)
    jti: Text = models.CharField(max_length=128)
    expires_at: Seconds = models.BigIntegerField()

    class Meta:
        constraints: ClassVar = [UniqueConstraint(fields=["issuer", "jti"], name="used_assertion_once")]
        indexes: ClassVar = [Index(fields=["expires_at"], name="used_assertion_expires_at")]


class SigningKey(models.Model):
    """A key that signs access tokens from ``signs_from`` on, until a younger one does; from ``retired_at`` on it is nothing.

    ``private_key`` is PKCS #8, in PEM or sealed (``signing``): unless sealed, the database is a secret.
    """

    objects: ClassVar[Manager[SigningKey]] = Manager()

    kid: Text = models.CharField(max_length=43, unique=True)
    alg: Text = models.CharField(max_length=8)
    private_key: LongText = models.TextField()
    created_at: Seconds = models.BigIntegerField()
    signs_from: Seconds = models.BigIntegerField(default=0)
    retired_at: MaybeSeconds = models.BigIntegerField(null=True)


class AuditEvent(models.Model):
    """One line of the audit log; ``digest`` covers it and ``previous``, so that no line can be changed or taken out."""

    objects: ClassVar[Manager[AuditEvent]] = Manager()

    at: Seconds = models.BigIntegerField()
    actor: Text = models.CharField(max_length=128)
    source: Text = models.CharField(max_length=64)
    action: Text = models.CharField(max_length=64)
    device: Text = models.CharField(max_length=64)
    result: Text = models.CharField(max_length=16)
    detail: LongText = models.TextField()
    previous: Text = models.CharField(max_length=64, unique=True)
    digest: Text = models.CharField(max_length=64, unique=True)

    class Meta:
        indexes: ClassVar = [
            Index(fields=["device", "id"], name="audit_device"),
            Index(fields=["action", "id"], name="audit_action"),
            Index(fields=["at", "id"], name="audit_at"),
        ]


class SignInLink(models.Model):
    """A link that opens one session for ``operator``, once."""

    objects: ClassVar[Manager[SignInLink]] = Manager()

    token_hash: Text = models.CharField(max_length=64, unique=True)
    operator: Text = models.CharField(max_length=64)
    created_by: Text = models.CharField(max_length=64)
    created_at: Seconds = models.BigIntegerField()
    expires_at: Seconds = models.BigIntegerField()
    used_at: MaybeSeconds = models.BigIntegerField(null=True)


class Operator(models.Model):
    """Somebody who may look at the fleet, or change it, as far as ``role`` goes."""

    objects: ClassVar[Manager[Operator]] = Manager()

    name: Text = models.CharField(max_length=64, unique=True)
    role: Text = models.CharField(max_length=16)
    created_at: Seconds = models.BigIntegerField()
    created_by: Text = models.CharField(max_length=128)


class OperatorToken(models.Model):
    """A token with which a program works for an operator, at most in ``role``. ``prefix`` names it where it is listed."""

    objects: ClassVar[Manager[OperatorToken]] = Manager()

    prefix: Text = models.CharField(max_length=16, unique=True)
    token_hash: Text = models.CharField(max_length=64, unique=True)
    operator: models.ForeignKey[Operator, Operator] = models.ForeignKey(Operator, on_delete=models.CASCADE)
    role: Text = models.CharField(max_length=16)
    note: Text = models.CharField(max_length=64, default="")
    created_at: Seconds = models.BigIntegerField()
    expires_at: Seconds = models.BigIntegerField()
    used_at: MaybeSeconds = models.BigIntegerField(null=True)
    revoked_at: MaybeSeconds = models.BigIntegerField(null=True)


class View(models.Model):
    """A query with a name, and how its answer is shown: ``columns`` are separated by commas."""

    objects: ClassVar[Manager[View]] = Manager()

    slug: Text = models.CharField(max_length=64, unique=True)
    query: LongText = models.TextField()
    columns: Text = models.CharField(max_length=256, default="")
    sort: Text = models.CharField(max_length=32, default="")
    created_at: Seconds = models.BigIntegerField()
    created_by: Text = models.CharField(max_length=64)


class RememberedAnswer(models.Model):
    """What a change was answered, so that the same request sent again is answered and not done again."""

    objects: ClassVar[Manager[RememberedAnswer]] = Manager()

    actor: Text = models.CharField(max_length=128)
    key: Text = models.CharField(max_length=64)
    request_hash: Text = models.CharField(max_length=64)
    status: Number = models.IntegerField()
    body: LongText = models.TextField()
    created_at: Seconds = models.BigIntegerField()

    class Meta:
        constraints: ClassVar = [UniqueConstraint(fields=["actor", "key"], name="remembered_answer_once")]
        indexes: ClassVar = [Index(fields=["created_at"], name="remembered_answer_age")]


class Webhook(models.Model):
    """An address that is told of ``events`` (separated by spaces). ``secret`` signs what is sent: the database is a secret."""

    objects: ClassVar[Manager[Webhook]] = Manager()

    url: Text = models.CharField(max_length=500, unique=True)
    secret: Text = models.CharField(max_length=64)
    events: Text = models.CharField(max_length=256)
    created_at: Seconds = models.BigIntegerField()
    created_by: Text = models.CharField(max_length=64)


class Delivery(models.Model):
    """One event on its way to one webhook. ``next_at`` is when to try (again); NULL when it is over. ``error``: the last."""

    objects: ClassVar[Manager[Delivery]] = Manager()

    webhook: models.ForeignKey[Webhook, Webhook] = models.ForeignKey(Webhook, on_delete=models.CASCADE)
    body: LongText = models.TextField()
    attempts: Number = models.IntegerField(default=0)
    created_at: Seconds = models.BigIntegerField()
    next_at: MaybeSeconds = models.BigIntegerField(null=True)
    delivered_at: MaybeSeconds = models.BigIntegerField(null=True)
    error: Text = models.CharField(max_length=200, default="")

    class Meta:
        indexes: ClassVar = [Index(fields=["next_at"], name="delivery_next")]


class ResourceServer(models.Model):
    """A service that devices call. With its secret it may ask about tokens for ``audience``, and no others."""

    objects: ClassVar[Manager[ResourceServer]] = Manager()

    client_id: Text = models.CharField(max_length=64, unique=True)
    name: Text = models.CharField(max_length=64, unique=True)
    audience: Text = models.CharField(max_length=256)
    secret_hash: Text = models.CharField(max_length=64)
    created_at: Seconds = models.BigIntegerField()
    created_by: Text = models.CharField(max_length=128)


class AccessRule(models.Model):
    """The devices of ``query`` may have tokens for ``audience`` with ``scopes`` (separated by spaces)."""

    objects: ClassVar[Manager[AccessRule]] = Manager()

    audience: Text = models.CharField(max_length=256)
    query: LongText = models.TextField()
    scopes: LongText = models.TextField()
    created_at: Seconds = models.BigIntegerField()
    created_by: Text = models.CharField(max_length=128)


class RevokedToken(models.Model):
    """An access token that was revoked before its end; remembered until ``expires_at``."""

    objects: ClassVar[Manager[RevokedToken]] = Manager()

    jti: Text = models.CharField(max_length=64, unique=True)
    device: Text = models.CharField(max_length=64)
    revoked_at: Seconds = models.BigIntegerField()
    expires_at: Seconds = models.BigIntegerField()

    class Meta:
        indexes: ClassVar = [Index(fields=["expires_at"], name="revoked_token_expires_at")]


class SharedSecret(models.Model):
    """What servers of one fleet must all know and nobody else: base64, sealed where the signing keys are."""

    objects: ClassVar[Manager[SharedSecret]] = Manager()

    name: Text = models.CharField(max_length=64, unique=True)
    value: LongText = models.TextField()
