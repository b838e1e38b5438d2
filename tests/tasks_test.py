#!/usr/bin/env python3
"""tasks.jsonl through the server, every KV type: a broken cache shows up here first.

f16 and q8_0 always run whole, with BANTAM_FULL=1 every type does, otherwise the others run every sixth task. Arithmetic is the same everywhere
(NUMERICS), so which answers differ from the float model's is known beforehand: exactly those of tests/data/tasks_changed.json, with these words. That file itself
keeps to limits: 1 % of the answers, 5 % with 5 and 4 bits, except for f32 (5 of 420), q4_1 (23), q4_0 (28) and iq4_nl (29): docs/QUALITY.md
lists every change against f16 with its margin; most are digits that the float model guesses. And of the float model's right answers at most 2 or,
with 5 and 4 bits, 8 may be lost, with iq4_nl 9.

  tests/tasks_test.py --write      makes tests/data/tasks_changed.json anew, for a change of the arithmetic"""
import json, sys
sys.path[:0] = ["tests/support"]
from harness import *

CHANGED_FILE = "tests/data/tasks_changed.json"
MORE_THAN_ASKED = {"f32": 5, "q4_1": 23, "q4_0": 28, "iq4_nl": 29}
tasks = [json.loads(line) for line in open("tests/data/tasks.jsonl")]
TYPES = "f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0 iq4_nl".split()
write = sys.argv[1:] == ["--write"]
expected = {} if write else json.load(open(CHANGED_FILE))
for kind in TYPES:
    wide = kind in ("f32", "f16", "bf16", "q8_0")
    server = Server("-ctk", kind, "-ctv", kind, "-lv", "3")
    chosen = range(0, len(tasks), 1 if write or FULL or kind in ("f16", "q8_0") else 6)
    changed, examples, lost, right, errors = {}, [], 0, 0, 0
    for number in chosen:
        task = tasks[number]
        status, reply = server.json("POST", "/v1/chat/completions", {"messages": task["messages"], "temperature": 0, "max_tokens": 96})
        errors += status != 200
        answer = reply["choices"][0]["message"]["content"] if status == 200 else f"HTTP {status}"
        right += answer == task["expected"]
        lost += task["float_answer"] == task["expected"] != answer
        if answer != task["float_answer"]:
            changed[str(number)] = answer
            examples.append((number, task["kind"], answer, task["float_answer"]))
    print(f"{kind}: {len(changed)} of {len(chosen)} answers differ from the float model's, {right} right, {lost} of its right ones lost")
    for item in examples[:3]:
        print("   ", item)
    check(f"{kind}: every request is answered", errors == 0, errors)
    if write:
        expected[kind] = changed
    else:
        known = {number: answer for number, answer in expected[kind].items() if int(number) in chosen}
        odd = [item for item in examples if known.get(str(item[0])) != item[2]]
        check(f"{kind}: the answers that are known to differ, and no others", changed == known, (odd[:3], sorted(set(known) - set(changed))))
    most_lost = (2 if wide else 9 if kind == "iq4_nl" else 8) if len(chosen) == len(tasks) else 1
    check(f"{kind}: at most {most_lost} are lost", lost <= most_lost, lost)
    check(f"{kind}: server ends cleanly", server.stop() == 0)
for kind in TYPES:
    limit = MORE_THAN_ASKED.get(kind, int((0.01 if kind in ("f16", "bf16", "q8_0") else 0.05) * len(tasks)))
    check(f"{kind}: at most {limit} of {len(tasks)} are known to differ", len(expected[kind]) <= limit, len(expected[kind]))
if write and check("nothing failed", sys.modules["harness"].failed == 0):
    with open(CHANGED_FILE, "w") as out:
        out.write("{\n" + ",\n".join(f'"{kind}": {json.dumps(answers, indent=1)}' for kind, answers in expected.items()) + "\n}\n")
finish()
