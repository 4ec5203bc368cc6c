"""Functions that end-to-end tests apply."""

from __future__ import annotations

from typing import Any

SMALL = {"cpu": "500m", "memory": "64Mi", "disk": "16Mi"}
SPARSE = "for n in 1 2; do dd if=/dev/zero of=/out/$n.bin bs=1 count=1 seek=12000000 2>/dev/null; done"
"""A script that writes two files with holes, together larger than that disk."""


def shell(name: str, image: str, *, outputs: list[dict[str, Any]] | None = None, **spec: Any) -> dict[str, Any]:
    """A function that runs ``params.script`` with busybox's shell.

    ``job`` has more keys of ``spec.job``; whatever else is given, keys of ``spec``."""
    job: dict[str, Any] = {
        "image": image,
        "command": ["/bin/sh", "-c", "{{ params.script }}"],
        "resources": SMALL,
        "timeout": "60s",
        "grace": "1s",
    }
    if outputs is not None:
        job["files"] = {"outputs": outputs}
    job |= spec.pop("job", {})
    params = {"type": "object", "required": ["script"], "properties": {"script": {"type": "string"}}}
    return {
        "apiVersion": "rgrid/v1",
        "kind": "Function",
        "metadata": {"name": name},
        "spec": {"params": params, "job": job, "retry": {"attempts": 1}, **spec},
    }
