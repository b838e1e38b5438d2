#!/usr/bin/env python3
"""tasks.jsonl through the server: a broken cache shows up here first. f16 and q8_0 may change at most 1 % of the answers."""
import json, sys
sys.path[:0] = ["tests/support"]
from harness import *

tasks = [json.loads(line) for line in open("tests/data/tasks.jsonl")]
TYPES = "f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0 iq4_nl".split()
for kind in TYPES:
    server = Server("-ctk", kind, "-ctv", kind, "-lv", "3")
    chosen = tasks if FULL or kind in ("f16", "q8_0") else tasks[::6]
    changed, right = [], 0
    for task in chosen:
        status, reply = server.json("POST", "/v1/chat/completions", {"messages": task["messages"], "temperature": 0, "max_tokens": 96})
        answer = reply["choices"][0]["message"]["content"] if status == 200 else f"HTTP {status}"
        right += answer == task["expected"]
        if answer != task["float_answer"]:
            changed.append((task["kind"], answer, task["float_answer"]))
    print(f"{kind}: {len(changed)} of {len(chosen)} answers differ from the float model's, {right} right")
    for item in changed[:3]:
        print("   ", item)
    limit = 0.01 if kind in ("f32", "f16", "bf16", "q8_0") else 0.05
    if kind in ("f16", "q8_0") or FULL:
        check(f"{kind}: at most {limit:.0%} differ", len(changed) <= limit * len(chosen), len(changed))
    check(f"{kind}: server ends cleanly", server.stop() == 0)
finish()
