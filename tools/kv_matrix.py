#!/usr/bin/env python3
"""Decode speed of every cache type at every depth: runs `bantam bench`, writes a table and a drawing.

  tools/kv_matrix.py run MODEL OUT.jsonl [--bench PROGRAM] [--types f16,q8_0/q4_0] [--depths 0,1024] [-n 16] [-r 2]
  tools/kv_matrix.py table OUT.jsonl                  Markdown on stdout
  tools/kv_matrix.py svg OUT.jsonl FILE.svg TITLE     equal pairs only, tok/s over the depth

Depths beyond 1,024 are filled with copies of the first 1,024 positions (bench --depth-copies): the same bytes
to read and the same arithmetic, at once.
"""
import argparse
import json
import math
import subprocess
import sys

TYPES = ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
PAIRS = ["f16/q8_0", "q8_0/q5_1", "q8_0/q4_0", "q5_1/q4_0", "q4_0/q8_0", "q8_0/iq4_nl"]
COLORS = ["#555555", "#000000", "#999999", "#1f77b4", "#2ca02c", "#98df8a", "#ff7f0e", "#d62728", "#9467bd"]


def run(args):
    for pair in args.types.split(","):
        k, _, v = pair.partition("/")
        command = [args.bench, "bench", "-m", args.model, "-p", "0", "-n", str(args.n), "-r", str(args.r),
                   "-d", args.depths, "--depth-copies", "-ctk", k, "-ctv", v or k, "-o", "jsonl"]
        print(" ".join(command), file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        with open(args.out, "a") as out:
            out.write(done.stdout)


def rows_of(path):
    """{(K, V): {depth: row}} in the order of the file; a later row replaces an earlier one."""
    rows = {}
    for line in open(path):
        row = json.loads(line)
        rows.setdefault((row["type_k"], row["type_v"]), {})[row["n_depth"]] = row
    if not rows:
        sys.exit(f"{path}: no rows")
    return rows


def name_of(pair):
    return pair[0] if pair[0] == pair[1] else "/".join(pair)


def kv_bytes(row):
    """Of one position, all layers: what a token read beside the weights."""
    return (1e9 * row["model_read_gb_s"] / row["median_ts"] - row["weight_bytes_per_token"]) / row["n_depth"]


def table(args):
    rows = rows_of(args.rows)
    depths = sorted({depth for row in rows.values() for depth in row})
    print("| K/V | " + " | ".join(f"{d:,}" for d in depths) + " | added ms per 1,000 positions | × KV bytes / B | B, GB/s |")
    print("|---" * (len(depths) + 4) + "|")
    for pair, cells in rows.items():
        low, high = cells[min(cells)], cells[max(cells)]
        # ms per 1,000 positions are microseconds per position.
        added = 1e6 * (1 / high["median_ts"] - 1 / low["median_ts"]) / (high["n_depth"] - low["n_depth"])
        speeds = " | ".join(f"{cells[d]['median_ts']:.1f}" if d in cells else "–" for d in depths)
        share = added * 1e-6 * 1e9 * low["read_gb_s"] / kv_bytes(high)
        print(f"| {name_of(pair)} | {speeds} | {added:.2f} | {share:.2f} | {low['read_gb_s']:.0f} |")


def svg(args):
    rows = {pair: cells for pair, cells in rows_of(args.rows).items() if pair[0] == pair[1]}
    depths = sorted({depth for row in rows.values() for depth in row})
    speeds = [row["median_ts"] for cells in rows.values() for row in cells.values()]
    left, top, width, height = 60, 40, 560, 340
    low, high = math.log(min(speeds) * 0.9), math.log(max(speeds) * 1.1)

    def x_of(depth):
        return left + width * depths.index(depth) / max(1, len(depths) - 1)

    def y_of(speed):
        return top + height * (high - math.log(speed)) / (high - low)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 110} {top + height + 50}" '
           'font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="{left}" y="20" font-size="14">{args.title}</text>']
    for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500):
        if low <= math.log(tick) <= high:
            y = y_of(tick)
            out.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>'
                       f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    for depth in depths:
        out.append(f'<text x="{x_of(depth):.1f}" y="{top + height + 18}" text-anchor="middle">{depth:,}</text>')
    out.append(f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">positions in the cache</text>'
               f'<text x="14" y="{top + height / 2}" transform="rotate(-90 14 {top + height / 2})" '
               'text-anchor="middle">tok/s</text>')
    # Names in the order of the last speeds, apart from each other.
    order = sorted(rows, key=lambda pair: -rows[pair][max(rows[pair])]["median_ts"])
    label_y = top
    for pair in order:
        cells = rows[pair]
        color = COLORS[TYPES.index(pair[0])]
        points = " ".join(f"{x_of(d):.1f},{y_of(cells[d]['median_ts']):.1f}" for d in sorted(cells))
        last = y_of(cells[max(cells)]["median_ts"])
        label_y = max(label_y + 14, last)
        out.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
                   f'<line x1="{left + width + 2}" y1="{last:.1f}" x2="{left + width + 14}" y2="{label_y:.1f}" '
                   f'stroke="{color}"/><text x="{left + width + 18}" y="{label_y + 4:.1f}" fill="{color}">{pair[0]}</text>')
    out.append("</svg>")
    with open(args.file, "w") as file:
        file.write("\n".join(out) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    part = commands.add_parser("run")
    part.add_argument("model")
    part.add_argument("out")
    part.add_argument("--bench", default="build/release/bin/bantam")
    part.add_argument("--types", default=",".join(TYPES + PAIRS))
    part.add_argument("--depths", default="0,1024,4096,16384,32512")
    part.add_argument("-n", type=int, default=16)
    part.add_argument("-r", type=int, default=2)
    part.set_defaults(call=run)
    part = commands.add_parser("table")
    part.add_argument("rows")
    part.set_defaults(call=table)
    part = commands.add_parser("svg")
    part.add_argument("rows")
    part.add_argument("file")
    part.add_argument("title")
    part.set_defaults(call=svg)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
