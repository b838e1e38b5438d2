#!/usr/bin/env python3
"""docs/ARM.md: cycles of the decode loops and prefill tiles, predicted by llvm-mca from the code that ships.
usage: arm_predict.py [--write]   (needs zig in build/venv and Debian's llvm-19)"""
import collections, re, subprocess, sys

SOURCE = "bench/arm_loops.cc"
FLAGS = {"neon": [], "dotprod": ["-mcpu=generic+dotprod", "-DBANTAM_DOTPROD"],
         "i8mm": ["-mcpu=generic+dotprod+i8mm", "-DBANTAM_DOTPROD", "-DBANTAM_I8MM"]}
# Heading, model of llvm-mca, instruction set.
CORES = [("Cortex-A57", "cortex-a57", "neon"), ("Cortex-A72", "cortex-a72", "neon"),
         ("Cortex-A76 (as neoverse-n1)", "neoverse-n1", "dotprod")]
TILE_CORES = CORES + [("Neoverse N2, dotprod", "neoverse-n2", "dotprod"), ("Neoverse N2, i8mm", "neoverse-n2", "i8mm"),
                      ("Neoverse V1, dotprod", "neoverse-v1", "dotprod"), ("Neoverse V1, i8mm", "neoverse-v1", "i8mm")]
# name -> (function, weights of a row in an activation block)
LOOPS = {"q1_0, block 128": ("q1_0_128", 128), "q1_0, block 32": ("q1_0_32", 32), "pq2_0, block 128": ("pq2_0_128", 128),
         "q8_0, block 32": ("q8_0_32", 32), "q4_1, block 32": ("q4_1_32", 32)}
# Products of one instruction; a block of 16 rows is told by their sum.
PRODUCTS = {"sdot": 16, "smmla": 32, "smlal": 8, "smlal2": 8, "smull": 8, "smull2": 8}
# Weights read for a token, of them by the down projection (blocks of 32): Bonsai's shapes.
MODELS = {"8B": (7.568e9, 36 * 4096 * 12288), "4B": (4.022e9, 36 * 2560 * 9728), "1.7B": (1.720e9, 28 * 2048 * 6144)}
# Of them the output matrix, which a prompt multiplies by its last row alone.
OUTPUT = {"8B": 4096 * 151936, "4B": 2560 * 151936, "1.7B": 2048 * 151936}
# board -> core, cores, GHz, working read bandwidth in GB/s (research figures, not measured by us)
BOARDS = {"Pi 4": (1, 4, 1.5, 5.0), "Pi 5": (2, 4, 2.4, 13.8), "Jetson Nano CPU": (0, 4, 1.43, 8.5)}
# TBL of one and of two table registers by the project's hardware notes (from Arm's guides): uops, latency, cycles between two.
TBL = {"cortex-a57": ("3, 6, 1.5", "5, 9, 2.5"), "cortex-a72": ("–, 6, – (1.5 assumed)", "–, 9, –"),
       "neoverse-n1": ("–, 2, 0.5", "–, –, 0.5")}


def assembly(variant):
    command = ["tools/zig-cxx", "-std=c++20", "-O3", "-g0", "-DNDEBUG", "-ffp-contract=off", "-fno-math-errno", "-Isrc",
               *FLAGS[variant], "-S", SOURCE, "-o", f"build/arm_loops_{variant}.s"]
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


def products(lines):
    """Products of these instructions; without a multiplication SADALP (SADDLP the first time) adds 16 masked activations."""
    count = collections.Counter(line.split()[0] for line in code(lines))
    masked = sum(bool(re.match(r"\s+sad(al|dl)p\s+v\d+\.8h", line)) for line in lines)
    return sum(count[name] * n for name, n in PRODUCTS.items()) or 16 * masked


def mca(lines, core, *options):
    return subprocess.run(["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={core}", "-iterations=100", *options, "-"],
                          input="\n".join(lines), capture_output=True, text=True, check=True).stdout


def cycles(lines, core):
    return int(re.search(r"Total Cycles:\s+(\d+)", mca(lines, core)).group(1)) / 100


def instruction(line, core):
    """(uops, latency, cycles between two) of one instruction."""
    m = re.search(r"^ *(\d+) +(\d+) +([\d.]+) .*" + line.split()[0], mca([line], core), re.M)
    return m.group(1), m.group(2), m.group(3)


def per_128(text, name, weights, tokens, core):
    """Cycles for 128 weights of one row and one token: the block loops of a function (i8mm tiles have one for each half of
    the 16 rows) with the loops over words in them, whose trips follow from the products a block needs."""
    lines = body(text, name)
    nest = [l for l in loops(lines) if products(lines[l[0]:l[1] + 1])]
    blocks = [l for l in nest if not any(o != l and o[0] <= l[0] and l[1] <= o[1] for o in nest)]
    need, total = 16 * weights * tokens // len(blocks), 0.0
    for first, last in blocks:
        inner = sorted(l for l in nest if first <= l[0] and l[1] <= last and l != (first, last))
        rest, inside, end = [], 0, first
        for a, b in inner:
            rest += lines[end:a]
            inside += products(lines[a:b + 1])
            end = b + 1
        rest += lines[end:last + 1]
        trips = (need - products(rest)) / inside if inner else 1
        assert trips == int(trips) >= 1 and (inner or products(rest) == need), (name, core, need, products(rest), inside)
        total += cycles(code(rest), core) + trips * sum(cycles(code(lines[a:b + 1]), core) for a, b in inner)
    return total / (16 * weights * tokens) * 128


def row(name, cells):
    return f"| {name} | " + " | ".join(cells) + " |"


def head(first, names):
    return [row(first, names), "|---|" + "---|" * len(names)]


def decode_tables(table):
    names = [name for name, *_ in CORES]
    out = ["## Decode", "", "Cycles for 128 weights of one row, one token:", "", *head("loop", names)]
    out += [row(name, [f"{c:.1f}" for c in line]) for name, line in table.items()]
    out += ["", "Averages over the matrices by weights (1-bit models; the down projection takes blocks of 32):", "",
            *head("model", names)]
    mean = averages(table, MODELS)
    out += [row(model, [f"{c:.1f}" for c in mean[model]]) for model in MODELS]
    out += ["", "Predicted tok/s at depth 0: by instructions / by bandwidth (1.125 bits a weight); the smaller one counts.", "",
            *head("board", MODELS)]
    for board, (core, n, ghz, gb_s) in BOARDS.items():
        cells = [f"{n * ghz * 1e9 * 128 / mean[model][core] / total:.1f} / {gb_s * 1e9 / (total * 18 / 128):.1f}"
                 for model, (total, _) in MODELS.items()]
        out.append(row(f"{board} ({n} × {ghz} GHz, {gb_s} GB/s)", cells))
    return out


def averages(table, models):
    mean = {}
    for model, (total, down) in models.items():
        pairs = zip(table["q1_0, block 128"], table["q1_0, block 32"])
        mean[model] = [a * (1 - down / total) + b * down / total for a, b in pairs]
    return mean


def prefill_tables(table, rows):
    out = ["## Prefill", "", "Cycles for 128 weights of one row and one token, in the largest tile of tokens (in brackets):", "",
           *head("tile", [name for name, *_ in TILE_CORES])]
    for name, line in table.items():
        out.append(row(name, [f"{c:.1f} ({n})" for c, n in zip(line, rows[name])]))
    models = {name: (total - OUTPUT[name], down) for name, (total, down) in MODELS.items()}
    mean = averages(table, models)
    out += ["", "Predicted prompt tok/s by instructions, products of weights alone, without the output matrix (attention comes on top):", "",
            *head("board", MODELS)]
    for board, (core, n, ghz, _) in BOARDS.items():
        out.append(row(f"{board} ({n} × {ghz} GHz)", [f"{n * ghz * 1e9 * 128 / mean[model][core] / total:.1f}"
                                                      for model, (total, _) in models.items()]))
    return out


def tbl_table():
    out = ["## The price of TBL", "", "Uops, latency and cycles between two, 16 bytes; no loop above uses it. Hardware notes: from Arm's "
           "guides (A57, A76) and", "OSACA (A72, whose guide leaves the throughput blank).", "",
           *head("core", ["one table register: llvm-mca", "notes", "two: llvm-mca", "notes"])]
    for name, core, _ in CORES:
        one = ", ".join(instruction("tbl v0.16b, {v1.16b}, v2.16b", core))
        two = ", ".join(instruction("tbl v0.16b, {v1.16b, v2.16b}, v3.16b", core))
        out.append(row(name, [one, TBL[core][0], two, TBL[core][1]]))
    return out


def main():
    text = {variant: assembly(variant) for variant in FLAGS}
    decode = {name: [per_128(text[v], f"loop_{f}", weights, 1, core) for _, core, v in CORES]
              for name, (f, weights) in LOOPS.items()}
    rows = {name: [int(re.search(rf"^rows_{f}:\n\s+\.word\s+(\d+)", text[v], re.M).group(1)) for *_, v in TILE_CORES]
            for name, (f, _) in LOOPS.items()}
    prefill = {name: [per_128(text[v], f"tile_{f}", weights, n, core) for (_, core, v), n in zip(TILE_CORES, rows[name])]
               for name, (f, weights) in LOOPS.items()}
    out = ["# ARM by prediction", "",
           "Nothing here ran on a board. `tools/arm_predict.py` compiles the loops that ship (`bench/arm_loops.cc`), takes the loop over an",
           "activation block with its epilogue from the assembly, and asks llvm-mca 19 for its cycles; caches and DRAM are not in the model.", ""]
    out += decode_tables(decode) + [""] + prefill_tables(prefill, rows) + [""] + tbl_table()
    text = "\n".join(out) + "\n"
    print(text)
    if "--write" in sys.argv:
        open("docs/ARM.md", "w").write(text)


main()
