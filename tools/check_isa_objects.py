#!/usr/bin/env python3
"""ISA files compiled with other flags must not leak code into the rest: each object defines exactly one external symbol,
its fill function, and no weak ones.  usage: check_isa_objects.py BUILD_DIR"""
import glob, re, subprocess, sys

objects = sorted(glob.glob(sys.argv[1] + "/**/src/cpu/isa_*.cc.o", recursive=True))
bad = 0
for path in objects:
    lines = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = [re.match(r"[0-9a-f]* ?(\w) (.*)", line.strip()).groups() for line in lines]
    external = [name for kind, name in symbols if kind in "TDBRGS"]
    weak = [name for kind, name in symbols if kind in "VWvwu"]
    if not symbols and re.search(r"isa_(neon|dotprod|i8mm)\.cc", path):
        continue  # of the other processor family: nothing is compiled here
    fine = len(external) == 1 and re.match(r"bantam::fill_\w+\(bantam::Kernels&\)$", external[0]) and not weak
    if not fine:
        print(f"{path}: external {external}, weak {weak}")
        bad += 1
print(f"isa objects: {len(objects)} checked, {bad} with findings")
sys.exit(1 if bad or not objects else 0)
