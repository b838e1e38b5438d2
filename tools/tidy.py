#!/usr/bin/env python3
"""Rules of the tree that a machine can check: sizes, include edges, banned words. Exit 1 on any finding.
usage: tidy.py [--self-test]"""
import os, re, subprocess, sys

MAX_FILE, MAX_FUNCTION, MAX_LINE = 600, 70, 100
# A folder may directly include itself, base, and these.
EDGES = {
    "base": [], "codec": [], "gguf": ["codec"], "text": ["gguf"], "backend": ["codec"],
    "cpu": ["backend", "codec"], "cuda": ["backend", "codec"], "model": ["backend", "gguf", "codec"],
    "engine": ["model", "text", "gguf", "backend", "codec"], "server": ["engine"], "cli": ["engine", "server"],
}
FACTORY = {"engine": ["cpu/factory.h", "cuda/factory.h"]}
LIBRARIES = {"fmt/": ["base", "cli", "gguf"], "spdlog/": ["base"], "nlohmann/": ["text", "engine", "server", "cli"],
             "boost/": ["server"], "pcre2.h": ["text"]}
# File -> why it may use exceptions.
EXCEPTIONS = {"src/cli/main.cc": "bad_alloc becomes exit code 1",
              "src/base/thread_pool.cc": "std::thread throws where the kernel refuses a thread; the team is then smaller"}
ISA_FILE = re.compile(r"src/cpu/(isa_[a-z0-9_]+\.cc|[a-z0-9_]+\.inl)$")
TEMPLATES = re.compile(r"#include <(vector|string|algorithm|functional|memory|map|array|span|utility|optional)>")
BANNED = {r"\bstd::jthread\b": "std::jthread", r"\bstd::format\b": "std::format", r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b": "unfinished mark"}


def strip(line):
    return re.sub(r'"(\\.|[^"\\])*"', '""', re.sub(r"//.*", "", line))


def check_includes(path, folder, number, line, found):
    inner = re.match(r'#include "([a-z_0-9]+)/([^"]+)"', line)
    if inner:
        other, header = inner.group(1), inner.group(1) + "/" + inner.group(2)
        allowed = other in (folder, "base") or other in EDGES[folder] or header in FACTORY.get(folder, [])
        if not allowed:
            found.append((path, number, f"{folder} must not include {header}"))
    outer = re.match(r"#include <([^>]+)>", line)
    if outer:
        for prefix, folders in LIBRARIES.items():
            if outer.group(1).startswith(prefix) and folder not in folders:
                found.append((path, number, f"{folder} must not use {prefix.rstrip('/')}"))
    if ISA_FILE.search(path) and not path.endswith("isa.cc") and TEMPLATES.match(line):
        found.append((path, number, "ISA files include no std templates"))


def check_functions(path, lines, found):
    """Functions start at a line of column 0 or 2 that ends in '{' after a ')' and is no namespace or type."""
    start, indent = None, 0
    for number, line in enumerate(lines, 1):
        opens = re.match(r"^( {0,2})\S.*\)( const)?( noexcept)?( override)?( -> [^{]+)? \{$", line) or \
            re.match(r"^( {0,2})(    )?\S.*[)}] \{$", line)
        control = re.match(r"^\s*(if|for|while|switch|else|namespace|struct|class|enum|do)\b", line)
        if start is None and opens and not control:
            start, indent = number, len(opens.group(1))
        elif start is not None and re.match("^ {%d}\\}" % indent, line):
            if number - start + 1 > MAX_FUNCTION:
                found.append((path, start, f"function of {number - start + 1} lines, at most {MAX_FUNCTION}"))
            start = None


def check_file(path, text, found):
    folder = path.split("/")[1]
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    if len(lines) > MAX_FILE:
        found.append((path, MAX_FILE, f"{len(lines)} lines, at most {MAX_FILE}"))
    if path.endswith(".h") and not lines[0].startswith("//"):
        found.append((path, 1, "a header opens with what it owns and what it refuses"))
    if path.endswith(".h") and "#pragma once" not in text:
        found.append((path, 1, "#pragma once is missing"))
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE and not path.endswith(".def"):
            found.append((path, number, f"{len(line)} columns, at most {MAX_LINE}"))
        check_includes(path, folder, number, line, found)
        code = strip(line)
        for pattern, name in BANNED.items():
            if re.search(pattern, line):
                found.append((path, number, name))
        if path not in EXCEPTIONS and re.search(r"\b(try|throw|catch)\b\s*[({;]|\btry \{|\bthrow ", code):
            found.append((path, number, "exceptions stay in the listed files"))
        if re.search(r"\bdefault\s*:", code):
            found.append((path, number, "no default: over an enum"))
    check_functions(path, lines, found)


def check_links(path, text, found):
    for number, line in enumerate(text.split("\n"), 1):
        for target in re.findall(r"\]\(([^)#]+)\)", line):
            local = os.path.normpath(os.path.join(os.path.dirname(path), target))
            if "://" not in target and not os.path.exists(local):
                found.append((path, number, f"link to {target}, which does not exist"))


def tree():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True).stdout
    return [p for p in listed.split("\n") if p and os.path.isfile(p)]


def self_test():
    cases = {
        "columns": ("src/base/a.cc", "int x;" + " " * 120 + "\n"),
        "lines, at most 600": ("src/base/a.cc", "int x;\n" * 601),
        "function of": ("src/base/a.cc", "void f() {\n" + "  g();\n" * 80 + "}\n"),
        "must not include": ("src/base/a.cc", '#include "engine/engine.h"\n'),
        "must not use": ("src/model/a.cc", "#include <boost/asio.hpp>\n"),
        "exceptions": ("src/base/a.cc", "void f() {\n  throw 1;\n}\n"),
        "no default": ("src/base/a.cc", "  default:\n"),
        "unfinished": ("src/base/a.cc", "// TO" + "DO later\n"),
        "header opens": ("src/base/a.h", "#pragma once\n"),
        "#pragma once": ("src/base/a.h", "// owns nothing\n"),
        "no std templates": ("src/cpu/isa_x.cc", "#include <vector>\n"),
        "std::format": ("src/base/a.cc", "std::format(1);\n"),
    }
    bad = 0
    for rule, (path, text) in cases.items():
        found = []
        check_file(path, text, found)
        if not any(rule in what for *_, what in found):
            print(f"rule '{rule}' did not fire: {found}")
            bad += 1
    clean = []
    check_file("src/base/a.cc", "int f(int x) {\n  return x;\n}\n", clean)
    bad += len(clean)
    print(f"tidy self-test: {len(cases) + 1} cases, {bad} failed")
    return 1 if bad else 0


def main():
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    if "--self-test" in sys.argv:
        return self_test()
    found, n = [], 0
    for path in tree():
        if path.startswith("src/") and path.endswith((".cc", ".h", ".inl", ".def")):
            n += 1
            check_file(path, open(path, encoding="utf-8").read(), found)
        elif path.endswith(".md"):
            n += 1
            check_links(path, open(path, encoding="utf-8").read(), found)
    for path, number, what in found:
        print(f"{path}:{number}: {what}")
    print(f"tidy: {n} files, {len(found)} findings")
    return 1 if found else 0


sys.exit(main())
