"""The JSON of the API: what each thing looks like to a client."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tests.hetzner import goods
from tests.hetzner.cloud import Cloud
from tests.hetzner.goods import Image, Kind, Price
from tests.hetzner.things import Action, Address, Firewall, Key, Server

VAT = Decimal("1.19")
IMAGE_GRACE = timedelta(days=90)


def instant(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).replace(microsecond=0).isoformat()


def money(net: Decimal) -> dict[str, str]:
    return {"net": f"{net:.10f}", "gross": f"{net * VAT:.16f}"}


def location(name: str) -> dict[str, Any]:
    number, description, country, city, latitude, longitude, zone = goods.LOCATIONS[name]
    return {
        "id": number,
        "name": name,
        "description": description,
        "country": country,
        "city": city,
        "latitude": latitude,
        "longitude": longitude,
        "network_zone": zone,
    }


def price(place: str, value: Price) -> dict[str, Any]:
    return {
        "location": place,
        "price_hourly": money(value.hourly),
        "price_monthly": money(value.monthly),
        "included_traffic": 21990232555520,
        "price_per_tb_traffic": money(Decimal("1.00")),
    }


def server_type(kind: Kind) -> dict[str, Any]:
    return {
        "id": kind.id,
        "name": kind.name,
        "description": kind.name.upper(),
        "category": kind.category,
        "cores": kind.cores,
        "memory": float(kind.memory_gb),
        "disk": kind.disk_gb,
        "deprecated": False,
        "prices": [price(place, sale.price) for place, sale in kind.sales.items()],
        "storage_type": "local",
        "cpu_type": kind.cpu,
        "architecture": kind.architecture,
        "deprecation": None,
        "locations": [
            {
                "id": goods.LOCATIONS[place][0],
                "name": place,
                "deprecation": None
                if sale.announced is None
                else {"announced": instant(sale.announced), "unavailable_after": instant(sale.unavailable_after)},
                "recommended": sale.recommended,
                "available": sale.stock.shown,
            }
            for place, sale in kind.sales.items()
        ],
    }


def image(value: Image) -> dict[str, Any]:
    return {
        "id": value.id,
        "type": value.type,
        "status": "available",
        "name": value.name,
        "description": value.name,
        "image_size": None,
        "disk_size": 5,
        "created": instant(value.created),
        "created_from": None,
        "bound_to": None,
        "os_flavor": value.flavor,
        "os_version": value.version,
        "rapid_deploy": value.type == "system",
        "protection": {"delete": False},
        "deprecated": instant(value.deprecated),
        "deprecation": None
        if value.deprecated is None
        else {"announced": instant(value.deprecated), "unavailable_after": instant(value.deprecated + IMAGE_GRACE)},
        "deleted": instant(value.deleted),
        "labels": value.labels,
        "architecture": value.architecture,
    }


def action(value: Action) -> dict[str, Any]:
    error = None if value.error is None else {"code": value.error[0], "message": value.error[1]}
    return {
        "id": value.id,
        "command": value.command,
        "status": value.status,
        "progress": 0 if value.status == "running" else 100,
        "started": instant(value.started),
        "finished": instant(value.finished),
        "resources": [{"id": number, "type": kind} for number, kind in value.resources],
        "error": error,
    }


def server(cloud: Cloud, value: Server) -> dict[str, Any]:
    return {
        "id": value.id,
        "name": value.name,
        "status": value.status,
        "created": instant(value.created + cloud.clock.created_shift),
        "public_net": {
            "ipv4": None if value.ipv4 is None else _public(value.ipv4, f"static.{value.ipv4.ip}.example"),
            "ipv6": None if value.ipv6 is None else _public(value.ipv6, []),
            "floating_ips": [],
            "firewalls": [{"id": each, "status": _applied(cloud, value)} for each in value.firewalls],
        },
        "private_net": [],
        "server_type": server_type(value.kind),
        "location": location(value.location),
        "image": None if value.image is None else image(value.image),
        "iso": None,
        "rescue_enabled": False,
        "locked": bool(cloud.running(value)),
        "backup_window": None,
        "outgoing_traffic": 0,
        "ingoing_traffic": 0,
        "included_traffic": 21990232555520,
        "protection": {"delete": value.protected, "rebuild": value.protected},
        "labels": value.labels,
        "volumes": [],
        "load_balancers": [],
        "primary_disk_size": value.kind.disk_gb,
        "placement_group": None,
    }


def _public(address: Address, dns_ptr: Any) -> dict[str, Any]:
    return {"id": address.id, "ip": address.ip, "blocked": address.blocked, "dns_ptr": dns_ptr}


def _applied(cloud: Cloud, value: Server) -> str:
    pending = any(each.command == "apply_firewall" for each in cloud.running(value))
    return "pending" if pending else "applied"


def ssh_key(value: Key) -> dict[str, Any]:
    return {
        "id": value.id,
        "name": value.name,
        "fingerprint": value.fingerprint,
        "public_key": value.public_key,
        "labels": value.labels,
        "created": instant(value.created),
    }


def firewall(cloud: Cloud, value: Firewall) -> dict[str, Any]:
    used = [each for each in cloud.servers.values() if value.id in each.firewalls]
    return {
        "id": value.id,
        "name": value.name,
        "labels": value.labels,
        "created": instant(value.created),
        "rules": value.rules,
        "applied_to": [{"type": "server", "server": {"id": each.id}} for each in used],
    }


def primary_ip(value: Address) -> dict[str, Any]:
    return {
        "id": value.id,
        "name": value.name,
        "labels": {},
        "created": instant(value.created),
        "blocked": value.blocked,
        "location": location(value.location),
        "ip": value.ip,
        "dns_ptr": [],
        "protection": {"delete": False},
        "type": value.type,
        "auto_delete": value.auto_delete,
        "assignee_type": "unassigned" if value.server is None else "server",
        "assignee_id": value.server,
    }


def pricing(cloud: Cloud) -> dict[str, Any]:
    places = sorted({place for kind in cloud.kinds.values() for place in kind.sales})
    ip = {"price_hourly": money(cloud.ipv4_price.hourly), "price_monthly": money(cloud.ipv4_price.monthly)}
    free = {"price_hourly": money(Decimal(0)), "price_monthly": money(Decimal(0))}
    return {
        "currency": cloud.currency,
        "vat_rate": "19.00",
        "primary_ips": [
            {"type": "ipv4", "prices": [{"location": place, **ip} for place in places]},
            {"type": "ipv6", "prices": [{"location": place, **free} for place in places]},
        ],
        "floating_ip": {"price_monthly": money(Decimal("3.00"))},
        "floating_ips": [],
        "image": {"price_per_gb_month": money(Decimal("0.0143"))},
        "volume": {"price_per_gb_month": money(Decimal("0.0572"))},
        "server_backup": {"percentage": "20.00"},
        "server_types": [
            {
                "id": kind.id,
                "name": kind.name,
                "prices": [price(place, sale.price) for place, sale in kind.sales.items()],
            }
            for kind in cloud.kinds.values()
        ],
        "load_balancer_types": [],
    }


def http_date(at: datetime, shift: timedelta) -> str:
    return (at + shift).astimezone(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
