"""The image that the attacks run from: busybox, a compiled probe, and everything that an image can ask for."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import tarfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.images.build import image

_DOCKERFILE = """
COPY probe /bin/probe
COPY probe /bin/probe-as-root
ADD capable.tar /bin/
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
        return image(_DOCKERFILE, **{"probe": binary.read_bytes(), "capable.tar": _capable()})


def _capable() -> bytes:
    """A busybox that the kernel is to run with CAP_NET_RAW, whoever calls it (capabilities(7), "File capabilities")."""
    found = shutil.which("busybox")
    assert found is not None
    binary = Path(found).resolve().read_bytes()
    value = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # revision 2, effective
    entry = tarfile.TarInfo("capable/cat")
    entry.size, entry.mode = len(binary), 0o755
    entry.pax_headers = {"SCHILY.xattr.security.capability": value.decode("ascii")}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(entry, io.BytesIO(binary))
    return packed.getvalue()
