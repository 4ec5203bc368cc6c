"""CSV in, SQLite out: one pass finds the columns' types, a second one fills the table. Memory stays flat."""

import csv
import json
import math
import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE, TARGET = Path("/in/data.csv"), Path("/out/data.sqlite")
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
BATCH = 5000


class Column:
    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = "INTEGER"
        self.empty = 0

    def see(self, text: str) -> None:
        if text == "":
            self.empty += 1
        elif self.kind == "INTEGER" and not is_integer(text):
            self.kind = "REAL"
        if self.kind == "REAL" and text != "" and not is_real(text):
            self.kind = "TEXT"

    def value(self, text: str) -> int | float | str | None:
        if text == "":
            return None
        return int(text) if self.kind == "INTEGER" else float(text) if self.kind == "REAL" else text


def is_integer(text: str) -> bool:
    # 007 is a code, not a number.
    return INTEGER.fullmatch(text) is not None and (text.lstrip("+-") == "0" or not text.lstrip("+-").startswith("0"))


def is_real(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and not re.match(r"[+-]?0[0-9]", text) and "_" not in text
    except ValueError:
        return False


def rows(params: dict) -> Iterator[list[str]]:
    csv.field_size_limit(1024 * 1024)
    encoding = "utf-8-sig" if params["encoding"] == "utf-8" else params["encoding"]
    with SOURCE.open(newline="", encoding=encoding) as file:
        for row in csv.reader(file, delimiter=params["delimiter"], strict=True):
            if row:
                yield row


def header(first: list[str]) -> list[Column]:
    names: list[str] = []
    for number, given in enumerate(first, start=1):
        name = given.strip() or f"column_{number}"
        while name.lower() in (known.lower() for known in names):
            name += "_"
        names.append(name)
    return [Column(name) for name in names]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def main() -> None:
    params = json.loads(Path("/in/params.json").read_text())
    reading = rows(params)
    columns = header(next(reading, []))
    if not columns:
        sys.exit("the file is empty")
    count = bad = 0
    for number, row in enumerate(reading, start=2):
        if len(row) != len(columns):
            bad += 1
            if not params["skipBadRows"]:
                sys.exit(f"row {number} has {len(row)} values, the first one has {len(columns)}")
            continue
        count += 1
        for column, text in zip(columns, row, strict=True):
            column.see(text)
    print("progress: 40%", flush=True)

    table = quoted(params["table"])
    database = sqlite3.connect(TARGET)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    database.execute(f"CREATE TABLE {table} ({', '.join(f'{quoted(each.name)} {each.kind}' for each in columns)})")
    insert = f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})"
    reading, batch = rows(params), []
    next(reading)
    done = 0
    for row in reading:
        if len(row) == len(columns):
            batch.append([column.value(text) for column, text in zip(columns, row, strict=True)])
        if len(batch) == BATCH:
            database.executemany(insert, batch)
            done += len(batch)
            batch.clear()
            print(f"progress: {40 + 60 * done // count}%", flush=True)
    database.executemany(insert, batch)
    database.commit()
    database.close()

    described = [{"name": each.name, "type": each.kind, "empty": each.empty} for each in columns]
    result = {"table": params["table"], "rows": count, "skipped": bad, "columns": described}
    Path("/out/result.json").write_text(json.dumps(result))
    print(f"{count} rows, {len(columns)} columns, {TARGET.stat().st_size} bytes")


try:
    main()
except (UnicodeError, csv.Error, sqlite3.Error) as error:
    sys.exit(f"the file cannot be read: {error}")
