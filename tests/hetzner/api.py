"""The API's calls: a request and a cloud give a status and a document."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.hetzner import goods, labels, shapes
from tests.hetzner.cloud import Cloud
from tests.hetzner.goods import Image, Kind
from tests.hetzner.rules import Call, Effect, Fate, Omit, Stale
from tests.hetzner.things import Fault, Firewall, Key, Server

T = TypeVar("T")

HOSTNAME = re.compile(
    r"^(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$"
)
USER_DATA_BYTES = 32768
PER_PAGE = 25
MOST_PER_PAGE = 50
POWER = {
    "poweron": "start_server",
    "poweroff": "stop_server",
    "shutdown": "shutdown_server",
    "reboot": "reboot_server",
    "reset": "reset_server",
}


@dataclass
class Token:
    readonly: bool = False
    revoked: bool = False


@dataclass
class Reply:
    status: int
    document: Any = None
    link: str | None = None


def invalid(field: str, message: str) -> Fault:
    return Fault(
        422,
        "invalid_input",
        f"invalid input in field '{field}'",
        {"fields": [{"name": field, "messages": [message]}]},
    )


class Api:
    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self._listed: list[Server] = []
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = [
            (method, re.compile(pattern), handler)
            for method, pattern, handler in (
                ("GET", r"/servers", self.list_servers),
                ("POST", r"/servers", self.create_server),
                ("GET", r"/servers/(\d+)", self.get_server),
                ("PUT", r"/servers/(\d+)", self.update_server),
                ("DELETE", r"/servers/(\d+)", self.delete_server),
                ("GET", r"/servers/(\d+)/actions", self.server_actions),
                ("POST", r"/servers/(\d+)/actions/(poweron|poweroff|shutdown|reboot|reset)", self.power),
                ("POST", r"/servers/(\d+)/actions/rebuild", self.rebuild),
                ("POST", r"/servers/(\d+)/actions/create_image", self.create_image),
                ("POST", r"/servers/(\d+)/actions/change_protection", self.protect),
                ("GET", r"/actions", self.list_actions),
                ("GET", r"/actions/(\d+)", self.get_action),
                ("GET", r"/server_types", self.list_types),
                ("GET", r"/server_types/(\d+)", self.get_type),
                ("GET", r"/locations", self.list_locations),
                ("GET", r"/images", self.list_images),
                ("DELETE", r"/images/(\d+)", self.delete_image),
                ("GET", r"/pricing", lambda call: Reply(200, {"pricing": shapes.pricing(self.cloud)})),
                ("GET", r"/ssh_keys", self.list_keys),
                ("POST", r"/ssh_keys", self.create_key),
                ("DELETE", r"/ssh_keys/(\d+)", self.delete_key),
                ("GET", r"/firewalls", self.list_firewalls),
                ("POST", r"/firewalls", self.create_firewall),
                ("DELETE", r"/firewalls/(\d+)", self.delete_firewall),
                ("GET", r"/primary_ips", self.list_addresses),
                ("GET", r"/datacenters(?:/\d+)?", self.datacenters),
            )
        ]

    def handle(self, call: Call, effects: Iterable[Effect] = ()) -> Reply:
        """Carry the call out; raises ``Fault``. ``effects`` are those that change what it does."""
        known = False
        for method, pattern, handler in self._routes:
            if match := pattern.fullmatch(call.path):
                known = True
                if method == call.method:
                    given = {"effects": list(effects)} if handler in (self.list_servers, self.create_server) else {}
                    return handler(call, *match.groups(), **given)
        if known:
            raise Fault(405, "method_not_allowed", "method not allowed")
        raise Fault(404, "not_found", "not found")

    # Servers.

    def list_servers(self, call: Call, effects: list[Effect]) -> Reply:
        found = [copy(server) for server in self.cloud.servers.values()]
        if any(isinstance(effect, Stale) for effect in effects):
            found = self._listed
        else:
            self._listed = found
        chosen = self._chosen(call, found, "name")
        if status := call.query.get("status"):
            chosen = [each for each in chosen if each.status in status]
        hidden = 0
        for effect in effects:
            if isinstance(effect, Omit):
                before = len(chosen)
                chosen = [each for each in chosen if not effect.where(self._shown(each))]
                hidden += (before - len(chosen)) if effect.counted else 0
        return self._page(call, "servers", chosen, hidden=hidden, shape=self._shown)

    def _shown(self, server: Server) -> dict[str, Any]:
        return shapes.server(self.cloud, server)

    def get_server(self, call: Call, number: str) -> Reply:
        return Reply(200, {"server": shapes.server(self.cloud, self._server(number))})

    def create_server(self, call: Call, effects: list[Effect]) -> Reply:
        body = _body(call)
        for field in ("name", "server_type", "image"):
            if not isinstance(body.get(field), str | int) or isinstance(body[field], bool):
                raise invalid(field, "Missing data for required field.")
        name = body["name"]
        if not isinstance(name, str) or not HOSTNAME.match(name):
            raise invalid("name", "must be a valid hostname")
        tags = body.get("labels") or {}
        if not labels.valid(tags):
            raise invalid("labels", "labels are not valid")
        told = body.get("user_data") or ""
        if not isinstance(told, str) or len(told.encode()) > USER_DATA_BYTES:
            raise invalid("user_data", "Length must be between 0 and 32768.")
        kind, place = self._kind_and_place(body)
        image = self._image(body["image"], kind)
        firewalls = [each.get("firewall") for each in body.get("firewalls") or []]
        if any(each not in self.cloud.firewalls for each in firewalls):
            raise Fault(404, "not_found", "firewall not found")
        keys = body.get("ssh_keys") or []
        if any(all(each not in (key.id, key.name) for key in self.cloud.keys.values()) for each in keys):
            raise invalid("ssh_keys", "SSH key not found")
        if any(server.name == name for server in self.cloud.servers.values()):
            raise Fault(409, "uniqueness_error", "server name is already used", {})
        net = body.get("public_net") or {}
        server, action, following = self.cloud.create(
            name=name,
            kind=kind,
            location=place,
            image=image,
            labels=tags,
            user_data=told,
            firewalls=firewalls,
            ipv4=net.get("enable_ipv4", True),
            ipv6=net.get("enable_ipv6", True),
            start=body.get("start_after_create", True),
            fate=next((effect for effect in effects if isinstance(effect, Fate)), Fate()),
        )
        server.password_mailed = not keys
        return Reply(
            201,
            {
                "server": shapes.server(self.cloud, server),
                "action": shapes.action(action),
                "next_actions": [shapes.action(each) for each in following],
                "root_password": None if keys else secrets.token_urlsafe(12),
            },
        )

    def update_server(self, call: Call, number: str) -> Reply:
        server, body = self._server(number), _body(call)
        if (name := body.get("name")) is not None:
            if any(each.name == name and each is not server for each in self.cloud.servers.values()):
                raise Fault(409, "uniqueness_error", "server name is already used", {})
            server.name = name
        if (tags := body.get("labels")) is not None:
            if not labels.valid(tags):
                raise invalid("labels", "labels are not valid")
            server.labels = tags
        return Reply(200, {"server": shapes.server(self.cloud, server)})

    def delete_server(self, call: Call, number: str) -> Reply:
        return Reply(200, {"action": shapes.action(self.cloud.delete(self._server(number)))})

    def server_actions(self, call: Call, number: str) -> Reply:
        server = self._server(number)
        found = [each for each in self.cloud.actions.values() if (server.id, "server") in each.resources]
        if status := call.query.get("status"):
            found = [each for each in found if each.status in status]
        return self._page(call, "actions", [shapes.action(each) for each in found])

    def power(self, call: Call, number: str, what: str) -> Reply:
        return Reply(201, {"action": shapes.action(self.cloud.power(self._server(number), POWER[what]))})

    def rebuild(self, call: Call, number: str) -> Reply:
        server, body = self._server(number), _body(call)
        image = self._image(body.get("image", ""), server.kind)
        action = self.cloud.power(server, "rebuild_server")
        server.image, server.user_data = image, body.get("user_data") or server.user_data
        return Reply(201, {"action": shapes.action(action), "root_password": None})

    def create_image(self, call: Call, number: str) -> Reply:
        server, body = self._server(number), _body(call)
        if self.cloud.running(server):
            raise Fault(423, "locked", "cannot perform operation because server is locked")
        image = Image(self.cloud.next_id(), None, "snapshot", server.kind.architecture, labels=body.get("labels") or {})
        self.cloud.images.append(image)
        action = self.cloud.instant("create_image", server.id)
        return Reply(201, {"image": shapes.image(image), "action": shapes.action(action)})

    def protect(self, call: Call, number: str) -> Reply:
        server, body = self._server(number), _body(call)
        server.protected = bool(body.get("delete"))
        return Reply(201, {"action": shapes.action(self.cloud.instant("change_protection", server.id))})

    # Actions.

    def list_actions(self, call: Call) -> Reply:
        wanted = call.query.get("id")
        if not wanted:
            raise Fault(410, "deprecated_api_endpoint", "listing actions without an id was removed")
        found = [self.cloud.actions[int(each)] for each in wanted if int(each) in self.cloud.actions]
        return self._page(call, "actions", [shapes.action(each) for each in found])

    def get_action(self, call: Call, number: str) -> Reply:
        action = self.cloud.actions.get(int(number))
        if action is None:
            raise Fault(404, "not_found", "action not found")
        return Reply(200, {"action": shapes.action(action)})

    # The shop.

    def list_types(self, call: Call) -> Reply:
        found = [shapes.server_type(kind) for kind in self.cloud.kinds.values()]
        return self._page(call, "server_types", self._chosen(call, found, "name"))

    def get_type(self, call: Call, number: str) -> Reply:
        kind = next((each for each in self.cloud.kinds.values() if each.id == int(number)), None)
        if kind is None:
            raise Fault(404, "not_found", "server type not found")
        return Reply(200, {"server_type": shapes.server_type(kind)})

    def list_locations(self, call: Call) -> Reply:
        found = [shapes.location(name) for name in goods.LOCATIONS]
        return self._page(call, "locations", self._chosen(call, found, "name"))

    def list_images(self, call: Call) -> Reply:
        with_deprecated = call.query.get("include_deprecated", ["false"])[0].lower() == "true"
        found = [
            shapes.image(each)
            for each in self.cloud.images
            if each.deleted is None and (with_deprecated or each.deprecated is None)
        ]
        chosen = self._chosen(call, found, "name")
        for field in ("type", "status", "architecture"):
            if values := call.query.get(field):
                chosen = [each for each in chosen if each[field] in values]
        return self._page(call, "images", chosen)

    def delete_image(self, call: Call, number: str) -> Reply:
        image = next((each for each in self.cloud.images if each.id == int(number) and each.type == "snapshot"), None)
        if image is None:
            raise Fault(404, "not_found", "image not found")
        self.cloud.images.remove(image)
        return Reply(204)

    def datacenters(self, call: Call) -> Reply:
        announcement = {"announcement": "https://docs.hetzner.cloud/changelog#2026-06-02-datacenters-deprecated"}
        raise Fault(410, "deprecated_api_endpoint", "this endpoint was removed", announcement)

    # Keys, firewalls, addresses.

    def list_keys(self, call: Call) -> Reply:
        found = [shapes.ssh_key(each) for each in self.cloud.keys.values()]
        return self._page(call, "ssh_keys", self._chosen(call, found, "name", "fingerprint"))

    def create_key(self, call: Call) -> Reply:
        body = _body(call)
        for field in ("name", "public_key"):
            if not isinstance(body.get(field), str) or not body[field]:
                raise invalid(field, "Missing data for required field.")
        parts = body["public_key"].split()
        try:
            digest = hashlib.md5(base64.b64decode(parts[1], validate=True)).hexdigest()
        except (IndexError, binascii.Error):
            raise invalid("public_key", "not a valid public key") from None
        print_ = ":".join(digest[at : at + 2] for at in range(0, 32, 2))
        if any(each.name == body["name"] or each.fingerprint == print_ for each in self.cloud.keys.values()):
            raise Fault(409, "uniqueness_error", "SSH key not unique", {})
        key = Key(
            self.cloud.next_id(), body["name"], body["public_key"], print_, body.get("labels") or {}, self.cloud.now
        )
        self.cloud.keys[key.id] = key
        return Reply(201, {"ssh_key": shapes.ssh_key(key)})

    def delete_key(self, call: Call, number: str) -> Reply:
        if self.cloud.keys.pop(int(number), None) is None:
            raise Fault(404, "not_found", "SSH key not found")
        return Reply(204)

    def list_firewalls(self, call: Call) -> Reply:
        found = [shapes.firewall(self.cloud, each) for each in self.cloud.firewalls.values()]
        return self._page(call, "firewalls", self._chosen(call, found, "name"))

    def create_firewall(self, call: Call) -> Reply:
        body = _body(call)
        if not isinstance(body.get("name"), str) or not body["name"]:
            raise invalid("name", "Missing data for required field.")
        if any(each.name == body["name"] for each in self.cloud.firewalls.values()):
            raise Fault(409, "uniqueness_error", "firewall name is already used", {})
        rules = [_rule(rule) for rule in body.get("rules") or []]
        wall = Firewall(self.cloud.next_id(), body["name"], rules, body.get("labels") or {}, self.cloud.now)
        self.cloud.firewalls[wall.id] = wall
        done = self.cloud.instant("set_firewall_rules", wall.id, "firewall")
        return Reply(201, {"firewall": shapes.firewall(self.cloud, wall), "actions": [shapes.action(done)]})

    def delete_firewall(self, call: Call, number: str) -> Reply:
        if any(int(number) in each.firewalls for each in self.cloud.servers.values()):
            raise Fault(422, "resource_in_use", "firewall is in use")
        if self.cloud.firewalls.pop(int(number), None) is None:
            raise Fault(404, "not_found", "firewall not found")
        return Reply(204)

    def list_addresses(self, call: Call) -> Reply:
        found = [shapes.primary_ip(each) for each in self.cloud.addresses.values()]
        return self._page(call, "primary_ips", self._chosen(call, found, "name", "ip"))

    # Parts.

    def _server(self, number: str) -> Server:
        server = self.cloud.servers.get(int(number))
        if server is None:
            raise Fault(404, "not_found", "server not found")
        return server

    def _kind_and_place(self, body: dict[str, Any]) -> tuple[Kind, str]:
        kind = next((each for each in self.cloud.kinds.values() if body["server_type"] in (each.id, each.name)), None)
        if kind is None:
            raise invalid("server_type", "server type not found")
        place = body.get("location")
        if place is None:
            place = next((each for each, sale in kind.sales.items() if sale.stock.left != 0), next(iter(kind.sales)))
        place = next((name for name, facts in goods.LOCATIONS.items() if place in (name, facts[0])), None)
        if place is None:
            raise invalid("location", "location not found")
        if place not in kind.sales:
            raise Fault(422, "invalid_input", "unsupported location for server type", None)
        ends = kind.sales[place].unavailable_after
        if ends is not None and self.cloud.now >= ends:
            raise invalid("server_type", "server type is deprecated")
        return kind, place

    def _image(self, wanted: Any, kind: Kind) -> Image:
        for image in self.cloud.images:
            if image.deleted is None and (
                wanted == image.id or (wanted == image.name and image.architecture == kind.architecture)
            ):
                return image
        raise invalid("image", "image not found")

    def _chosen(self, call: Call, found: list[T], *fields: str) -> list[T]:
        for field in fields:
            if wanted := call.query.get(field):
                found = [each for each in found if _value(each, field) in wanted]
        if text := call.query.get("label_selector", [""])[0]:
            try:
                fits = labels.selector(text)
            except ValueError:
                raise invalid("label_selector", "invalid label selector") from None
            found = [each for each in found if fits(_value(each, "labels"))]
        return found

    def _page(
        self,
        call: Call,
        name: str,
        found: list[T],
        *,
        hidden: int = 0,
        shape: Callable[[T], Any] = lambda each: each,
    ) -> Reply:
        for order in reversed(call.query.get("sort", [])):
            field, _, direction = order.partition(":")
            if field not in ("id", "name", "created", "command", "status", "started", "finished"):
                raise invalid("sort", "unknown field")
            found = sorted(found, key=lambda each, field=field: _value(each, field) or "", reverse=direction == "desc")
        page, size = _number(call, "page", 1, 10**9), _number(call, "per_page", PER_PAGE, MOST_PER_PAGE)
        total = len(found) + hidden
        last = max(1, -(-total // size))
        pages = {
            "page": page,
            "per_page": size,
            "previous_page": page - 1 if page > 1 else None,
            "next_page": page + 1 if page < last else None,
            "last_page": last,
            "total_entries": total,
        }
        links = {"next": pages["next_page"], "last": last, "prev": pages["previous_page"]}
        link = ", ".join(f'</v1{call.path}?page={at}>; rel="{rel}"' for rel, at in links.items() if at)
        part = found[(page - 1) * size : page * size]
        return Reply(200, {name: [shape(each) for each in part], "meta": {"pagination": pages}}, link)


def _value(thing: Any, field: str) -> Any:
    return thing[field] if isinstance(thing, dict) else getattr(thing, field)


def _body(call: Call) -> dict[str, Any]:
    if not isinstance(call.body, dict):
        raise Fault(400, "json_error", "JSON cannot be parsed")
    return call.body


def _number(call: Call, name: str, default: int, most: int) -> int:
    text = call.query.get(name, [str(default)])[0]
    if not text.isdecimal() or int(text) < 1:
        raise invalid(name, "must be a positive number")
    return min(int(text), most)


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    return {
        "direction": rule["direction"],
        "protocol": rule["protocol"],
        "port": rule.get("port"),
        "source_ips": rule.get("source_ips", []),
        "destination_ips": rule.get("destination_ips", []),
        "description": rule.get("description"),
    }
