"""These tests are run by ``make boot`` alone: the first time, Debian packages for a machine are fetched."""

from __future__ import annotations

import os

if not os.environ.get("RGRID_TEST_BOOT"):
    collect_ignore_glob = ["test_*.py"]
