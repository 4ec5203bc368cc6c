"""Your function: params come from /in/params.json, files go to /out, and /out/result.json comes back as the result."""

import csv
import json
import re
from collections import Counter
from pathlib import Path


def main() -> None:
    params = json.loads(Path("/in/params.json").read_text())
    words = Counter(re.findall(r"\w+", params["text"].lower()))
    most = words.most_common(params["most"])

    with Path("/out/words.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["word", "count"])
        table.writerows(most)
    result = {"words": words.total(), "different": len(words), "most": dict(most)}
    Path("/out/result.json").write_text(json.dumps(result))
    print(f"counted {words.total()} words")


main()
