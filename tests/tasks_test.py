#!/usr/bin/env python3
"""tasks.jsonl through the server, every KV type: a broken cache shows up here first.

f16 and q8_0 always run whole and may change at most 1 % of the answers, with BANTAM_FULL=1 also f32 and bf16, the others 5 % (not met: f32 differs
in 5, q4_1 in 23, q4_0 in 28 of 420, mostly of digits that the float model guesses; docs/QUALITY.md lists every change against f16). Otherwise the
others run every sixth task with limits above what they change there. And in every run hardly a right answer of the float model's may be lost."""
import json, sys
sys.path[:0] = ["tests/support"]
from harness import *

tasks = [json.loads(line) for line in open("tests/data/tasks.jsonl")]
TYPES = "f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0 iq4_nl".split()
for kind in TYPES:
    wide = kind in ("f32", "f16", "bf16", "q8_0")
    server = Server("-ctk", kind, "-ctv", kind, "-lv", "3")
    chosen = tasks if FULL or kind in ("f16", "q8_0") else tasks[::6]
    changed, lost, right = [], 0, 0
    for task in chosen:
        status, reply = server.json("POST", "/v1/chat/completions", {"messages": task["messages"], "temperature": 0, "max_tokens": 96})
        answer = reply["choices"][0]["message"]["content"] if status == 200 else f"HTTP {status}"
        right += answer == task["expected"]
        lost += task["float_answer"] == task["expected"] != answer
        if answer != task["float_answer"]:
            changed.append((task["kind"], answer, task["float_answer"]))
    print(f"{kind}: {len(changed)} of {len(chosen)} answers differ from the float model's, {right} right, {lost} of its right ones lost")
    for item in changed[:3]:
        print("   ", item)
    whole = len(chosen) == len(tasks)
    if whole:
        limit = 0.01 if wide else 0.05
        check(f"{kind}: at most {limit:.0%} differ", len(changed) <= limit * len(chosen), len(changed))
    else:
        limit = 1 if wide else 3 if kind.startswith("q5") else 6
        check(f"{kind}: at most {limit} of the sample differ", len(changed) <= limit, len(changed))
    most_lost = (2 if wide else 8) if whole else 1
    check(f"{kind}: at most {most_lost} are lost", lost <= most_lost, lost)
    check(f"{kind}: server ends cleanly", server.stop() == 0)
finish()
