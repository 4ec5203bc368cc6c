"""An agent loop on an OpenAI-compatible endpoint, with one tool and nothing but Python's standard library."""

import json
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

FILES = Path("/out/files")
BUSY = 75
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "write_file",
            "description": "Write a text file for the user.",
            "parameters": {
                "type": "object",
                "required": ["name", "text"],
                "properties": {"name": {"type": "string"}, "text": {"type": "string"}},
            },
        },
    }
]


def ask(params: dict, messages: list[dict]) -> dict:
    """The model's next message, and what it cost."""
    body = {"model": params["model"], "messages": messages, "tools": TOOLS}
    request = urllib.request.Request(
        params["url"].rstrip("/") + "/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read(2000).decode(errors="replace")
        if error.code == 429 or error.code >= 500:
            try_later(error.headers.get("Retry-After", ""), f"the endpoint answers {error.code}")
        sys.exit(f"the endpoint answers {error.code}: {said}")
    except (urllib.error.URLError, TimeoutError) as error:
        try_later("", f"the endpoint does not answer: {error}")


def try_later(seconds: str, reason: str) -> None:
    if seconds.isdecimal():
        Path("/out/retry.json").write_text(json.dumps({"after": int(seconds), "reason": reason}))
    print(reason, file=sys.stderr)
    sys.exit(BUSY)


def write_file(name: str, text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return "error: a file's name is letters, digits and . _ -"
    FILES.mkdir(exist_ok=True)
    (FILES / name).write_text(text)
    return f"{name}: {len(text)} characters written"


def use(call: dict) -> str:
    """What the model is told about its call of a tool: mistakes too, so that it can make up for them."""
    function = call.get("function") or {}
    if function.get("name") != "write_file":
        return f"error: there is no tool {function.get('name')}"
    try:
        return write_file(**{name: str(value) for name, value in json.loads(function["arguments"]).items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"error: {error}"


def main() -> None:
    params = json.loads(Path("/in/params.json").read_text())
    messages = [{"role": "system", "content": params["system"]}, {"role": "user", "content": params["prompt"]}]
    tokens = 0
    for step in range(1, params["steps"] + 1):
        answer = ask(params, messages)
        message = answer["choices"][0]["message"]
        tokens += (answer.get("usage") or {}).get("total_tokens") or 0
        messages.append(message)
        calls = message.get("tool_calls") or []
        print(f"step {step}/{params['steps']}: {len(calls)} calls, {tokens} tokens", flush=True)
        if not calls:
            result = {"answer": message.get("content") or "", "steps": step, "tokens": tokens}
            Path("/out/result.json").write_text(json.dumps(result))
            return
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": use(call)} for call in calls]
    sys.exit(f"no answer after {params['steps']} steps")


main()
