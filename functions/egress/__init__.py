"""The guard on every request to an address that a user names: callbacks and inputs (SECURITY §4.3).

A URL is parsed once, strictly; its name is looked up once, here; one forbidden address refuses it; and the
connection goes to an address that was vetted, with the name in SNI and Host. Nothing else on the way has a
say: no proxy of the environment, no redirect that was not vetted, no cookie, no second look-up. What a
server can make us read or wait for is bounded.

The package ships to nodes, so it imports nothing of ours. A firewall that drops the same ranges is the
second wall.
"""

from __future__ import annotations

from functions.egress.download import Download, open_download
from functions.egress.errors import EgressFailed, EgressRefused
from functions.egress.exchange import Answer, exchange
from functions.egress.lookup import Resolver
from functions.egress.policy import FORBIDDEN_V4, EgressPolicy, is_public
from functions.egress.registration import refused_names
from functions.egress.target import Target, check_url, origin_of

__all__ = [
    "FORBIDDEN_V4",
    "Answer",
    "Download",
    "EgressFailed",
    "EgressPolicy",
    "EgressRefused",
    "Resolver",
    "Target",
    "check_url",
    "exchange",
    "is_public",
    "open_download",
    "origin_of",
    "refused_names",
]
