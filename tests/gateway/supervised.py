"""A supervisor in a process of its own, for tests to kill: ``python -m tests.gateway.supervised FOLDER
PARTS``.

``PARTS`` is JSON: a list of [name, shell script, name of the signal that a child gets when its supervisor is
killed]."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from gateway.spawning import CannotStart
from gateway.supervisor import Part, Stopped, Supervisor

PATIENCE_S = 1.0


def main() -> None:
    folder = Path(sys.argv[1])
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    with Supervisor(folder, logs, lambda line: print(line, flush=True)) as supervisor:
        supervisor.end_strays()
        names = []
        try:
            for name, script, death_signal in json.loads(sys.argv[2]):
                names.append(name)
                supervisor.start(part(folder, name, script, death_signal))
                supervisor.wait_for((folder / f"{name}.ready").exists, name, within_s=10)
            print("ready", flush=True)
            supervisor.run()
        except Stopped:
            pass
        except CannotStart as error:
            print(error, flush=True)
        clean = [name for name in reversed(names) if supervisor.stop(name, patience_s=PATIENCE_S)]
        print("ended by themselves:", *clean, flush=True)
        supervisor.forget()


def part(folder: Path, name: str, script: str, death_signal: str) -> Part:
    env = {**os.environ, "FOLDER": str(folder)}
    return Part(name, lambda: ["sh", "-c", script], lambda: env, death_signal=signal.Signals[death_signal])


if __name__ == "__main__":
    main()
