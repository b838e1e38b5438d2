#!/usr/bin/env python3
"""A program for old boards: no symbol newer than the given glibc, no libstdc++.  usage: check_glibc.py PROGRAM VERSION"""
import re, subprocess, sys

lines = subprocess.run(["objdump", "-T", sys.argv[1]], capture_output=True, text=True, check=True).stdout
number = lambda text: tuple(map(int, text.split(".")))
found = sorted({number(v) for v in re.findall(r"GLIBC_([0-9.]+)", lines)})
bad = [v for v in found if v > number(sys.argv[2])]
print(f"{sys.argv[1]}: newest glibc symbol {'.'.join(map(str, found[-1])) if found else 'none'}, limit {sys.argv[2]}")
sys.exit(1 if bad or not found or "GLIBCXX" in lines else 0)
