"""The image that the attacks run from: busybox, a compiled probe, and everything that an image can ask for."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.images.build import image

_DOCKERFILE = """
COPY probe /bin/probe
COPY probe /bin/probe-as-root
RUN chmod 4755 /bin/probe-as-root && mkdir -p /data /etc && echo planted >/data/planted
VOLUME /data
VOLUME /tmp
USER root
EXPOSE 80
STOPSIGNAL SIGSTOP
HEALTHCHECK --interval=1s CMD touch /tmp/healthcheck-ran
ENTRYPOINT ["/bin/false"]
"""


@cache
def hostile() -> str:
    """Its id."""
    with TemporaryDirectory() as folder:
        binary = Path(folder) / "probe"
        source = Path(__file__).with_name("probe.c")
        subprocess.run(["gcc", "-static", "-O1", "-w", "-o", binary, source], check=True)
        return image(_DOCKERFILE, probe=binary.read_bytes())
