"""Reduces the recorded traffic of the official workers to what the replay needs.

    reduce.py TRANSCRIPT > exchanges.jsonl

One line per exchange or stream frame, in the recorded order. Left out: headers beside the kind of
credential, requests for skills and memory stores, and texts beyond 400 characters.
"""

import json
import sys

LIMIT = 400
UNSERVED = ("/v1/skills/", "/v1/memory_stores/")


def short(value):
    if isinstance(value, str):
        return value[:LIMIT]
    if isinstance(value, list):
        return [short(item) for item in value]
    if isinstance(value, dict):
        return {key: short(item) for key, item in value.items()}
    return value


def parsed(text):
    if text is None:
        return None
    try:
        return short(json.loads(text))
    except ValueError:
        return text


def credential(headers):
    for name, value in headers:
        if name.lower() == "authorization":
            return "sessions_token" if "tok" in value.lower() else "environment_key"
    return "none"


def frame(text):
    data = [line[5:] for line in text.splitlines() if line.startswith("data:")]
    return parsed("\n".join(data))


def main():
    rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
    answers = {}
    for row in rows:
        if row["dir"] == "response":
            answers[(row["client"], row["scenario"], row["to"])] = row
    for row in rows:
        head = {"client": row["client"].split("-")[0], "scenario": row["scenario"]}
        if row["dir"] == "request" and not row["path"].startswith(UNSERVED):
            answer = answers.get((row["client"], row["scenario"], row["n"]))
            line = {
                "method": row["method"],
                "path": row["path"],
                "query": row["query"],
                "credential": credential(row["headers"]),
                "body": parsed(row["body"]) if row["body"] else None,
                "status": answer and answer["status"],
                "answer": answer and parsed(answer["body"]),
            }
            print(json.dumps({**head, "request": line}))
        elif row["dir"] == "sse-frame" and "data:" in row["frame"]:
            event = frame(row["frame"])
            print(json.dumps({**head, "frame": event}))
        elif row["dir"] == "sse-close":
            print(json.dumps({**head, "closed": True}))


if __name__ == "__main__":
    main()
