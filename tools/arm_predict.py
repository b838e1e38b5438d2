#!/usr/bin/env python3
"""docs/ARM.md: cycles of the decode loops on the boards' cores, predicted by llvm-mca from the code that ships.
usage: arm_predict.py [--write]   (needs zig in build/venv and Debian's llvm-19)"""
import re, subprocess, sys

SOURCE = "bench/arm_loops.cc"
CORES = [("Cortex-A57", "cortex-a57", "plain"), ("Cortex-A72", "cortex-a72", "plain"),
         ("Cortex-A76 (as neoverse-n1)", "neoverse-n1", "dotprod")]
# name -> (function, words of 64 bytes in an activation block, weights of a row in an activation block)
LOOPS = {"q1_0, block 128": ("loop_q1_0_128", 4, 128), "q1_0, block 32": ("loop_q1_0_32", 1, 32),
         "pq2_0, block 128": ("loop_pq2_0_128", 8, 128), "q8_0, block 32": ("loop_q8_0_32", 8, 32),
         "q4_1, block 32": ("loop_q4_1_32", 4, 32)}
# Weights read for a token, of them by the down projection (blocks of 32): Bonsai's shapes.
MODELS = {"8B": (7.568e9, 36 * 4096 * 12288), "4B": (4.022e9, 36 * 2560 * 9728), "1.7B": (1.720e9, 28 * 2048 * 6144)}
# board -> core, cores, GHz, working read bandwidth in GB/s (research figures, not measured by us)
BOARDS = {"Pi 4": (1, 4, 1.5, 5.0), "Pi 5": (2, 4, 2.4, 13.8), "Jetson Nano CPU": (0, 4, 1.43, 8.5)}


def assembly(variant):
    flags = ["-mcpu=generic+dotprod", "-DBANTAM_DOTPROD"] if variant == "dotprod" else []
    command = ["tools/zig-cxx", "-std=c++20", "-O3", "-g0", "-DNDEBUG", "-ffp-contract=off", "-fno-math-errno", "-Isrc",
               *flags, "-S", SOURCE, "-o", f"build/arm_loops_{variant}.s"]
    subprocess.run(command, capture_output=True, check=True)
    return open(f"build/arm_loops_{variant}.s").read()


def body(text, name):
    lines = re.search(rf"^{name}:[^\n]*\n(.*?)^\.Lfunc_end", text, re.S | re.M).group(1).split("\n")
    return [line.split("//")[0].rstrip() for line in lines]


def loops(lines):
    """(first, last) of every backward branch."""
    labels = {m.group(1): i for i, line in enumerate(lines) if (m := re.match(r"(\.L\w+):", line))}
    found = []
    for i, line in enumerate(lines):
        m = re.match(r"\s+(?:b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\w+)$", line)
        if m and labels.get(m.group(1), i) < i:
            found.append((labels[m.group(1)], i))
    return found


def code(lines):
    return [line for line in lines if line.strip() and not re.match(r"\s*(\.|/|#)|\S", line)]


def cycles(lines, core):
    out = subprocess.run(["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={core}", "-iterations=100", "-"],
                         input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    return int(re.search(r"Total Cycles:\s+(\d+)", out).group(1)) / 100


def per_128(text, name, words, weights, core):
    """Cycles for 128 weights of one row: 16 rows go through the block together."""
    lines = body(text, name)
    nest = loops(lines)
    heavy = max(nest, key=lambda l: len([x for x in code(lines[l[0]:l[1] + 1])]) if not any(
        o != l and o[0] >= l[0] and o[1] <= l[1] for o in nest) else -1)
    outer = [l for l in nest if l[0] < heavy[0] and l[1] > heavy[1]]
    if not outer:  # the words of a block are unrolled: one loop is the whole block
        return cycles(code(lines[heavy[0]:heavy[1] + 1]), core) / 16 * 128 / weights
    outer = min(outer, key=lambda l: l[1] - l[0])
    inner = code(lines[heavy[0]:heavy[1] + 1])
    rest = code(lines[outer[0]:heavy[0]] + lines[heavy[1] + 1:outer[1] + 1])
    return (words * cycles(inner, core) + cycles(rest, core)) / 16 * 128 / weights


def main():
    text = {variant: assembly(variant) for variant in ("plain", "dotprod")}
    table = {name: [per_128(text[v], f, words, weights, core) for _, core, v in CORES]
             for name, (f, words, weights) in LOOPS.items()}
    out = ["# ARM by prediction", "",
           "Nothing here ran on a board. `tools/arm_predict.py` compiles the decode loops that ship (`bench/arm_loops.cc`), takes the loop over an",
           "activation block with its epilogue from the assembly, and asks llvm-mca 19 for its cycles; caches and DRAM are not in the model.", "",
           "Cycles for 128 weights of one row, one token:", "",
           "| loop | " + " | ".join(name for name, *_ in CORES) + " |", "|---|" + "---|" * len(CORES)]
    out += [f"| {name} | " + " | ".join(f"{c:.1f}" for c in row) + " |" for name, row in table.items()]
    out += ["", "Averages over the matrices by weights (1-bit models; the down projection takes blocks of 32):", "",
            "| model | " + " | ".join(name for name, *_ in CORES) + " |", "|---|" + "---|" * len(CORES)]
    mean = {}
    for model, (total, down) in MODELS.items():
        share = down / total
        mean[model] = [a * (1 - share) + b * share for a, b in zip(table["q1_0, block 128"], table["q1_0, block 32"])]
        out.append(f"| {model} | " + " | ".join(f"{c:.1f}" for c in mean[model]) + " |")
    out += ["", "Predicted tok/s at depth 0: by instructions / by bandwidth (1.125 bits a weight); the smaller one counts.", "",
            "| board | " + " | ".join(MODELS) + " |", "|---|" + "---|" * len(MODELS)]
    for board, (core, n, ghz, gb_s) in BOARDS.items():
        cells = []
        for model, (total, _) in MODELS.items():
            by_code = n * ghz * 1e9 * 128 / mean[model][core] / total
            cells.append(f"{by_code:.1f} / {gb_s * 1e9 / (total * 18 / 128):.1f}")
        out.append(f"| {board} ({n} × {ghz} GHz, {gb_s} GB/s) | " + " | ".join(cells) + " |")
    text = "\n".join(out) + "\n"
    print(text)
    if "--write" in sys.argv:
        open("docs/ARM.md", "w").write(text)


main()
