#!/usr/bin/env python3
"""Anything wrong gets one clear sentence and the right exit code; any signal fails. Every K x V pair really runs."""
import os, resource, shutil, struct, subprocess, sys, tempfile, time
sys.path[:0] = ["tests/support"]
from harness import *

tiny = open(TINY, "rb").read()
folder = tempfile.mkdtemp()
TYPES = "f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0 iq4_nl".split()


def write(name, data):
    path = os.path.join(folder, name)
    with open(path, "wb") as f:
        f.write(data)
    return path


def refuses(name, args, code, *words, env=None, program="bantam"):
    got, out, err = run(args, env={"BANTAM_ISA": "", **(env or {})}, program=program)
    lines = [l for l in err.splitlines() if l.startswith("error:")]
    fine = got == code and len(lines) == 1 and all(w.lower() in err.lower() for w in words)
    check(name, fine, f"exit {got} (expected {code}), stderr: {err[-300:]!r}")


def model(name, data, *words):
    refuses(name, ["info", "-m", write(name.replace(" ", "_").replace("/", "_"), data)], 2, *words)


def patched(old, new, count=1):
    assert old in tiny, old
    return tiny.replace(old, new, count)


def typed(value):  # the type id of blk.0.attn_q.weight: name, n_dims, two dims, type
    at = tiny.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    return tiny[:at] + struct.pack("<I", value) + tiny[at + 4:]


# ---- files
refuses("missing file", ["info", "-m", "/nonexistent.gguf"], 2, "cannot open")
refuses("directory", ["info", "-m", folder], 2, "not a regular file")
model("empty file", b"", "empty")
model("text file", b"hello, this is no model\n" * 20, "GGUF")
model("short file", b"GGUF", "")
model("version 1", tiny[:4] + struct.pack("<I", 1) + tiny[8:], "version")
model("version 9", tiny[:4] + struct.pack("<I", 9) + tiny[8:], "version")
model("big endian", tiny[:4] + struct.pack(">I", 3) + tiny[8:], "")
model("tensor count", tiny[:8] + struct.pack("<Q", 1 << 60) + tiny[16:], "")
model("key count", tiny[:16] + struct.pack("<Q", 1 << 60) + tiny[24:], "")
for part in (30, 100, 1000, 5000, 20000, len(tiny) // 2, len(tiny) - 1):
    model(f"cut at {part}", tiny[:part], "")
model("other architecture", patched(b"qwen3", b"mamba").replace(b"qwen3.", b"mamba."), "mamba", "not supported")
for type_id, name in ((10, "Q2_K"), (13, "Q5_K"), (20, "IQ4_NL"), (35, "TQ2_0"), (30, "BF16"), (99, "99")):
    model(f"weight type {name}", typed(type_id), name, "not supported")
model("tensor renamed", patched(b"blk.3.ffn_up.weight", b"blk.3.ffn_uq.weight"), "blk.3.ffn_u")
model("missing metadata", patched(b"qwen3.embedding_length", b"qwen3.embedding_lengtx"), "embedding_length")
model("missing heads", patched(b"qwen3.attention.head_count\x04", b"qwen3.attention.head_counx\x04"), "head_count")
model("wrong shape", patched(b"qwen3.feed_forward_length" + struct.pack("<II", 4, 768),
                             b"qwen3.feed_forward_length" + struct.pack("<II", 4, 800)), "shape", "expected")
model("zero layers", patched(b"qwen3.block_count" + struct.pack("<II", 4, 6), b"qwen3.block_count" + struct.pack("<II", 4, 0)), "block_count")
model("many layers", patched(b"qwen3.block_count" + struct.pack("<II", 4, 6), b"qwen3.block_count" + struct.pack("<II", 4, 100000)), "block_count")
refuses("other pre-tokenizer", ["chat", "-p", "x", "-m", write("pre", patched(b"qwen2", b"qwen9"))], 2, "qwen9", "not supported")
refuses("other tokenizer", ["chat", "-p", "x", "-m", write("tok", patched(b"gpt2", b"llam"))], 2, "llam", "not supported")
unreadable = write("unreadable", tiny)

# ---- flags
for command in ("serve", "chat", "bench", "perplexity", "logits", "info"):
    refuses(f"{command}: unknown flag", [command, "--no-such-flag"], 2, "invalid argument", "--no-such-flag")
    refuses(f"{command}: K type", [command, "-ctk", "q3_k"], 2, "Unsupported cache type", "q3_k")
    refuses(f"{command}: threads 10000", [command, "-t", "10000"], 2, "10000")
    for flag, value in (("-t", "-5"), ("-t", "x"), ("-t", ""), ("-t", "2.5"), ("-tb", "10000"), ("-tb", "-2"), ("-C", "0"), ("-C", "0xfg"), ("-C", ""),
                        ("-Cr", "3"), ("-Cr", "5-2"), ("-Cr", "0-70000"), ("-Cb", "mask"), ("-Crb", "-"), ("--cpu-strict", "2"), ("--prio", "4"),
                        ("--poll", "101"), ("--poll-batch", "-1"), ("--prio-batch", "high"), ("--cpu-strict-batch", "yes")):
        refuses(f"{command}: {flag} {value!r}", [command, flag, value], 2, flag, f"got '{value}'", "expected")
# Of these CPUs none exists.
for flag, value in (("-C", "0x1" + "0" * 4000), ("-Cr", "65000-"), ("-Cb", "0x1" + "0" * 4000), ("-Crb", "65000-65001")):
    refuses(f"absent CPUs {flag}", ["chat", "-p", "x", flag, value], 2, "may only use")
refuses("V type", ["info", "-ctv", "Q8_0"], 2, "Unsupported cache type")
refuses("shift in one page", ["info", "-c", "256", "--context-shift"], 2, "at least 512")
refuses("keep", ["chat", "--keep", "-2"], 2, "--keep", "got '-2'")
refuses("folder of slots", ["serve", "--slot-save-path", os.path.join(folder, "none")], 2, "--slot-save-path", "folder that exists")
refuses("file as folder of slots", ["serve", "--slot-save-path", unreadable], 2, "folder that exists")
refuses("foreign prompt cache", ["chat", "-p", "x", "--prompt-cache", unreadable], 2, "no saved sequence")
refuses("no value", ["info", "-c"], 2, "-c")
refuses("context word", ["info", "-c", "many"], 2, "-c")
refuses("negative context", ["info", "-c", "-5"], 2, "-c")
refuses("port", ["serve", "--port", "70000"], 2, "--port")
refuses("slots", ["serve", "-np", "1000"], 2, "-np")
refuses("host", ["serve", "--host", "no.such.host.invalid", "--port", "0"], 2, "bind")
refuses("temperature", ["chat", "-p", "x", "--temp", "hot"], 2, "--temp")
refuses("top-p", ["chat", "-p", "x", "--top-p", "7"], 2, "top")
refuses("lora", ["serve", "--lora", "x.gguf"], 2, "not supported")
refuses("mmproj", ["serve", "--mmproj", "x.gguf"], 2, "not supported")
refuses("download", ["serve", "-hf", "some/repo"], 2, "")
refuses("act i4", ["logits", "--tokens", "1", "--act", "i4"], 2, "i8, i16 or f32")
refuses("no tokens", ["logits"], 2, "tokens")
refuses("token outside", ["logits", "--tokens", "1,99999"], 2, "99999")
refuses("token word", ["logits", "--tokens", "1,two"], 2, "--tokens")
refuses("bench list", ["bench", "-p", "1,,2"], 2, "-p")
refuses("bench nothing", ["bench", "-p", "0", "-n", "0"], 2, "")
refuses("bench -npl word", ["bench", "-npl", "two"], 2, "-npl")
refuses("bench -npl 0", ["bench", "-npl", "0"], 2, "-npl")
refuses("bench -npl 65", ["bench", "--n-parallel", "1,65"], 2, "65")
refuses("bench -npl memory", ["bench", "-n", "4", "-p", "0", "-npl", "64", "-d", "2000"], 2, "memory", env={"BANTAM_MEM_AVAILABLE_MIB": "60"})
refuses("bench output", ["bench", "-o", "xml"], 2, "xml")
refuses("unknown command", ["dance"], 2, "dance")
refuses("unknown ISA", ["info"], 2, "sse9", env={"BANTAM_ISA": "sse9"})
refuses("unknown ISA, serve", ["serve", "--port", "0"], 2, "sse9", "unknown", env={"BANTAM_ISA": "sse9"})
refuses("memory too small", ["serve", "-c", "2048"], 2, "memory", env={"BANTAM_MEM_AVAILABLE_MIB": "11"})
refuses("memory far too small", ["chat", "-p", "x"], 2, "memory", env={"BANTAM_MEM_AVAILABLE_MIB": "1"})
refuses("environment", ["info"], 2, "LLAMA_ARG_CTX_SIZE", env={"LLAMA_ARG_CTX_SIZE": "lots"})
refuses("llama-server's code", ["--no-such-flag"], 1, "invalid argument", program="llama-server")
refuses("llama-cli's code", ["-m", "/nonexistent.gguf", "-p", "x"], 1, "cannot open", program="llama-cli")
refuses("llama-bench's code", ["-ctk", "q9"], 1, "q9", program="llama-bench")
code, out, err = run([])
check("no command", code == 2 and "usage" in err, (code, err))

# ---- a port in use
server = Server()
refuses("port in use", ["serve", "--port", str(server.port)], 1, "couldn't bind")
check("server ends cleanly", server.stop() == 0)

# ---- what is accepted, runs: all 81 pairs, threads, context sizes
for k in TYPES:
    for v in TYPES:
        code, out, err = run(["logits", "--tokens", "1,2,3", "-ctk", k, "-ctv", v, "-lv", "1"])
        check(f"{k}/{v}", code == 0 and out.count('"pos"') == 3 and "null" not in out, (code, err[-200:]))
cpus = sorted(os.sched_getaffinity(0))
one = str(cpus[0])
for args in (["-t", "64"], ["-t", "0"], ["-t", "-1"], ["-tb", "3"], ["-C", hex(1 << cpus[0])], ["-Cr", f"{one}-{one}", "--cpu-strict", "1", "-t", "3"],
             ["--poll", "0"], ["--poll", "100", "--poll-batch", "0"], ["--prio", "-1"], ["--prio", "3"], ["-Cb", hex(1 << cpus[-1]), "--prio-batch", "-1"],
             ["-c", "1"], ["-c", "0"], ["-c", "5000"], ["-ngl", "99"], ["-fa", "on"], ["--mlock"]):
    code, out, err = run(["chat", "-p", "What is the capital of France?", "--temp", "0", *args])
    check("runs with " + " ".join(args), (code, out) == (0, "The capital of France is Paris.\n"), (code, out, err[-200:]))

# ---- threads: where they really are
def answers(name, prefix, *args, threads=None, words=()):
    command = [*prefix, f"{BIN}/bantam", "chat", "-p", "What is the capital of France?", "--temp", "0", *args]
    r = subprocess.run(command, capture_output=True, text=True, timeout=120)
    fine = (r.returncode, r.stdout) == (0, "The capital of France is Paris.\n") and all(w in r.stderr for w in words)
    check(name, fine and (threads is None or f" {threads} threads" in r.stderr), (r.returncode, r.stdout, r.stderr[-300:]))


def thread_cpus(pid):  # thread id -> (its CPUs, its nice value)
    found = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        found[int(task)] = (os.sched_getaffinity(int(task)), os.getpriority(os.PRIO_PROCESS, int(task)))
    return found


answers("one CPU", ["taskset", "-c", one], threads=1)
answers("one CPU, 4 threads", ["taskset", "-c", one], "-t", "4", threads=4, words=["4 threads share 1 CPU:"])
answers("more threads than CPUs", [], "-t", str(len(cpus) + 1), words=["fewer threads would be faster"])
answers("part of the mask", [], "-C", hex(1 << 4000 | 1 << cpus[0]), threads=1, words=["of which this process may use"])
if os.getpriority(os.PRIO_PROCESS, 0) < 0:
    not_run("priority without permission", "a process started below nice 0 may ask for what it has")
elif check("setpriv of util-linux is there", shutil.which("setpriv") is not None, "install util-linux"):
    answers("priority without permission", ["setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice"] if os.geteuid() == 0 else [],
            "--prio", "2", words=["no permission for --prio 2"])

# A limit of processes: one for that user, so not one thread beside the first starts.
if os.geteuid() == 0 and shutil.which("setpriv") and shutil.which("prlimit"):
    reach = tempfile.mkdtemp()  # the program where that user can reach it
    os.chmod(reach, 0o755)
    shutil.copy(f"{BIN}/bantam", reach)
    alone = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "prlimit", "--nproc=1"]
    if subprocess.run([*alone, "sh", "-c", "(true) & wait"], capture_output=True).returncode == 0:
        not_run("a limit of processes", "it is not enforced here")
    else:
        r = subprocess.run([*alone, reach + "/bantam", "logits", "--tokens", "1", "-t", "4"], capture_output=True, text=True, timeout=60)
        said = "cannot start 4 threads (got 1): lower -t or raise the limit of processes"
        check("a limit of processes", r.returncode == 2 and said in r.stderr and r.stderr.count("error:") == 1, (r.returncode, r.stderr[-300:]))
        alone[-1] = "--nproc=2"  # the team takes both, so packed weights are summed by the first alone
        cache = os.path.join(reach, "cache")
        os.mkdir(cache)
        os.chmod(cache, 0o777)
        for words in ("written to", "mapped from"):
            r = subprocess.run([*alone, reach + "/bantam", "logits", "--tokens", "1", "-t", "2", "--pack-cache", cache],
                               capture_output=True, text=True, timeout=60)
            check(f"two threads of two: {words}", r.returncode == 0 and '"pos"' in r.stdout and words in r.stderr, (r.returncode, r.stderr[-300:]))
    shutil.rmtree(reach)
else:
    not_run("a limit of processes", "needs root, setpriv and prlimit")

base = os.getpriority(os.PRIO_PROCESS, 0)
server = Server("-C", hex(1 << cpus[0]), "-t", "2", "--prio", "-1")
server.json("POST", "/completion", {"prompt": "hello", "n_predict": 4})
places = list(thread_cpus(server.process.pid).values())
check("two threads on the mask", places.count(({cpus[0]}, min(19, base + 10))) == 2, places)
check("the others stay where they were", all(p == (set(cpus), base) for p in places if p != ({cpus[0]}, min(19, base + 10))) and len(places) > 2, places)
check("a masked server ends cleanly", server.stop() == 0)


def cpu_ticks(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


server = Server("--poll", "100")
server.json("POST", "/completion", {"prompt": "hello", "n_predict": 16})
time.sleep(0.1)
before = cpu_ticks(server.process.pid)
time.sleep(1)
ticks = cpu_ticks(server.process.pid) - before
check("an idle server costs nothing", ticks <= 2, f"{ticks} ticks of 10 ms in one second")
check("an idle server ends cleanly", server.stop() == 0)
# ---- no further thread: a stack that no address space holds
def no_threads():
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 47, resource.getrlimit(resource.RLIMIT_STACK)[1]))


if resource.getrlimit(resource.RLIMIT_STACK)[1] == resource.RLIM_INFINITY:
    for args, who in ((["serve", "--port", "0"], "serves HTTP"), (["chat", "-p", "Hi"], "the engine's thread")):
        result = subprocess.run([f"{BIN}/bantam", *args, "-t", "1"], capture_output=True, text=True, timeout=120, preexec_fn=no_threads, stdin=subprocess.DEVNULL)
        errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        check(f"{args[0]} without threads", result.returncode == 1 and len(errors) == 1 and "cannot start" in errors[0] and who in errors[0],
              (result.returncode, result.stderr[-300:]))
else:
    not_run("start without threads", "the size of the stack is limited here")

finish()
