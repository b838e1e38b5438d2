#!/usr/bin/env python3
"""`bantam chat`, `bench`, `info` and the links as a user calls them."""
import json, os, shutil, subprocess, sys, tempfile
sys.path[:0] = ["tests/support"]
from harness import *

code, out, err = run(["chat", "-p", "What is the capital of France?", "--temp", "0"])
check("-p prints the answer and nothing else", (code, out) == (0, "The capital of France is Paris.\n"), (code, out, err[-200:]))
code, out, err = run(["-p", "What is the capital of France?", "--temp", "0", "-st"], program="llama-cli")
check("llama-cli", code == 0 and "Paris" in out, (code, out))
code, out, err = run(["chat", "--temp", "0"], stdin="What is the capital of France?\n\n/regen\n/clear\nWhat is the capital of Denmark?\n")
check("several lines, end of input", code == 0 and out.count("Paris") == 2 and "Copenhagen" in out, (code, out))
code, out, err = run(["chat"], stdin="")
check("end of input at once", code == 0, code)
code, out, err = run(["chat"], stdin="/exit\n")
check("/exit", code == 0, code)
for question, words in (("What is the capital of France?", ["Paris"]), ("How many days are there in a week?", ["seven", "7"]),
                        ("What color is the sky on a clear day?", ["blue"])):
    code, out, err = run(["chat", "-m", SMOLLM2, "-p", question, "--temp", "0", "-n", "60"])
    print("SmolLM2:", question, "->", out.strip())
    check("SmolLM2 " + question, code == 0 and any(w.lower() in out.lower() for w in words), out)
code, out, err = run(["bench", "-p", "32", "-n", "4", "-d", "0,300", "-r", "2", "-o", "json", "-ctk", "f16,q8_0", "-ctv", "q4_0"])
rows = json.loads(out) if code == 0 else []
keys = "n_prompt n_gen n_depth type_k type_v n_threads avg_ts stddev_ts samples_ts model_filename".split()
check("bench rows", len(rows) == 8, (code, len(rows), err[-300:]))
check("bench keys", bool(rows) and all(k in r for r in rows for k in keys), rows[:1])
check("bench speeds", bool(rows) and all(r["avg_ts"] > 0 for r in rows))
code, out, err = run(["bench", "-p", "8", "-n", "4", "-npl", "1,3", "-pg", "8,4", "-d", "0,40", "-r", "1", "-o", "json"])
rows = json.loads(out) if code == 0 else []
tests = [(r["n_prompt"], r["n_gen"], r["n_depth"], r["n_parallel"]) for r in rows]
check("bench -npl rows", tests == [(p, g, d, n) for d in (0, 40) for p, g, n in ((8, 0, 1), (0, 4, 1), (0, 4, 3), (8, 4, 1), (8, 4, 3))], (code, tests, err[-300:]))
check("bench -npl keys", bool(rows) and all(r["g_weights_s"] > 0 and r["avg_ts"] > 0 for r in rows), rows[:1])
check("bench machine figures", bool(rows) and all(r["int8_peak_gmac_s"] > 0 and r["int8_measured_gmac_s"] > 0 and r["read_gb_s"] > 0
      and abs(r["share_of_measured_dots"] * r["int8_measured_gmac_s"] / r["g_weights_s"] - 1) < 1e-6 for r in rows), rows[:1])
check("bench -npl reads the weights once a step", bool(rows) and all((r["model_read_gb_s"] is None) == (r["n_prompt"] > 0) for r in rows)
      and all(r["model_read_gb_s"] < r["weight_bytes_per_token"] * r["median_ts"] * 1e-9 for r in rows if r["n_prompt"] == 0 and r["n_parallel"] == 3))
code, out, err = run(["bench", "-p", "0", "-n", "4", "-npl", "2", "-r", "1"])
check("bench -npl md", code == 0 and "| tg4x2 |" in out, (code, out, err))
code, out, err = run(["-p", "16", "-n", "0", "-r", "1"], program="llama-bench")
check("llama-bench md", code == 0 and "pp16" in out and "GB/s" in out, (code, out, err))
code, out, err = run(["info", "-m", TINY, "-c", "512", "-ctk", "q4_0", "-ctv", "f16"])
check("info", code == 0 and "q4_0" in out and "memory" in out, out)
code, out, err = run(["info", "--json"])
check("info --json", code == 0 and isinstance(json.loads(out), dict), out[:200])
for program in ("llama-server", "llama-cli", "llama-bench", "llama-perplexity"):
    check("link " + program, os.path.islink(f"{BIN}/{program}"))
    code, out, err = run(["--help"], program=program)
    check(program + " --help", code == 0 and "-ctk" in out, code)
code, out, err = run(["--version"])
check("--version", code == 0 and "bantam" in out and "instruction sets here: scalar " in out and "; used: " in out, out)

# A conversation longer than the context: with --context-shift its oldest part is left out, without the way out is named.
talk = "Tell me a story.\nWhat is the capital of France?\nWhat is the capital of Denmark?\n"
code, out, err = run(["chat", "--temp", "0", "-c", "512", "--context-shift", "--ignore-eos", "-n", "600"], stdin=talk)
check("a long conversation goes on", code == 0 and "error:" not in err and "no longer fits" in err and out.count("capital of") >= 2, (code, err[-300:]))
# A question that is too long for any context leaves the conversation as it was.
long = "word " * 2000
code, out, err = run(["chat", "--temp", "0", "-c", "512", "--context-shift"], stdin=f"What is the capital of France?\n{long}\n/regen\n")
said = [line for line in err.splitlines() if "error:" in line]
check("a question too long alone", len(said) == 1 and "exceeds" in said[0] and "/clear" not in said[0] and "no longer fits" not in err, said)
code, out, err = run(["chat", "--temp", "0", "-c", "256", "--ignore-eos"], stdin=talk)
said = [line for line in err.splitlines() if "error:" in line]
check("without a shift it says how to go on", said != [] and all("exceeds" in x and "/clear starts anew" in x for x in said), (code, err[-300:]))

# A prompt cache that cannot be written: the answer comes, the error is named, the old file stays as it was.
home = tempfile.mkdtemp()
saved = os.path.join(home, "saved")
ask = ["chat", "-p", "What is the capital of France?", "--temp", "0", "--prompt-cache", saved]
check("a prompt cache is written", run(ask)[0] == 0 and os.listdir(home) == ["saved"])
before = open(saved, "rb").read()
ask[2] = "What is the capital of Denmark?"
for what in ("write:error=ENOSPC:when=1", "write:error=ENOSPC:when=3", "fsync:error=EIO", "rename,renameat,renameat2:error=EIO", "flock:error=ENOLCK"):
    trace = failing_calls(what, saved, saved + ".unfinished")
    if not trace:
        not_run("a disk that fails: " + what, "needs strace and the right to trace")
        continue
    r = subprocess.run([*trace, f"{BIN}/bantam", *ask], capture_output=True, text=True, timeout=60)
    fine = r.returncode == 1 and "Copenhagen" in r.stdout and r.stderr.count("error:") == 1 and f"'{saved}'" in r.stderr
    check(f"a disk that fails: {what}", fine, (r.returncode, r.stdout, r.stderr[-300:]))
    check(f"a disk that fails: {what}: the old file stays", os.listdir(home) == ["saved"] and open(saved, "rb").read() == before, os.listdir(home))
shutil.rmtree(home)
finish()
