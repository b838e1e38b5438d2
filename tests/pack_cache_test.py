#!/usr/bin/env python3
"""--pack-cache: the same logits with and without, whatever state the folder, the file or other starts are in; what
cannot be used is named in one line and replaced. Also: what loading leaves in the page cache, and its quiet progress."""
import ctypes, fcntl, mmap, os, resource, shutil, signal, stat, struct, sys, tempfile, time
sys.path[:0] = ["tests/support"]
from harness import *

os.makedirs("build", exist_ok=True)
home = tempfile.mkdtemp(dir="build")  # a real disk: /tmp may be memory
model = os.path.join(home, "model.gguf")
shutil.copy(TINY, model)
DATA = 65536
FIELDS = "magic format version source mtime fingerprint layout offset bytes checksum sum".split()
FORM = "<QIIQqQQQQQQ"
M64 = (1 << 64) - 1
count = 0


def folder():
    global count
    count += 1
    return os.path.join(home, f"cache{count}")


def start(cache, path=model, more=(), **options):
    args = ["logits", *(["-m", path] if path else []), "--tokens", "1,2,3,4,5", "--format", "f32", *more]
    command = [f"{BIN}/bantam", *args, *(["--pack-cache", cache] if cache else [])]
    environment = {**os.environ, **options.pop("env", {})}
    r = subprocess.run(command, capture_output=True, timeout=60, env=environment, **options)
    return r.returncode, r.stdout, r.stderr.decode()


def packs(cache):
    return sorted(os.listdir(cache)) if os.path.isdir(cache) else []


def warnings(err):
    return [line for line in err.splitlines() if line.startswith("warning:")]


code, plain, err = start(None)
check("without", code == 0 and len(plain) > 1000 and "mapped" not in err, err[-300:])
check("no progress below a second", "loading weights:" not in err, err)
check("one line says how long", len(re.findall(r"weights loaded in \d+\.\d\d s \(read ", err)) == 1, err)
# A slow disk: each of some 300 reads takes 10 ms longer.
slow = failing_calls("pread64:delay_enter=10000", SMOLLM2)
if slow is None:
    not_run("progress of a slow start", "strace may not trace here")
else:
    r = subprocess.run([*slow, f"{BIN}/bantam", "logits", "-m", SMOLLM2, "--tokens", "1,2,3", "-c", "512"], capture_output=True, timeout=120)
    steps = [int(x) for x in re.findall(r"^loading weights: (\d+) % \(\d+ MB/s\)$", r.stderr.decode(), re.M)]
    rising = all(a < b for a, b in zip(steps, steps[1:]))
    check("progress of a slow start", r.returncode == 0 and rising and 5 <= len(steps) <= 11 and steps[-1] == 100, (steps, r.stderr[-300:]))

# One copy of the weights: the most that was ever in memory is what the plan said before a weight was read, nothing beside it.
with subprocess.Popen([f"{BIN}/bantam", "logits", "-m", SMOLLM2, "--tokens", "1,2,3", "-c", "512"], stdout=subprocess.DEVNULL,
                      stderr=subprocess.PIPE, text=True) as process:
    err = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
planned = re.search(r"memory: weights ([\d.]+) \+ .* = ([\d.]+) MiB of", err)
peak = usage.ru_maxrss / 1024
print(f"peak {peak:.1f} MiB, planned {planned and planned[2]} MiB")
check("the peak while loading is within the plan", status == 0 and float(planned[1]) < peak <= float(planned[2]) < float(planned[1]) + 40, (peak, err[-300:]))


def maps(name, cache, path=model, expected=None, env=None, more=()):
    code, out, err = start(cache, path, env=env or {}, more=more)
    fine = code == 0 and out == (expected or plain) and "mapped from" in err and not warnings(err)
    return check(name, fine, (code, err[-400:]))


def packs_again(name, cache, *words, path=model, expected=None):
    """One warning with these words, the same logits, and the next start maps the new file."""
    code, out, err = start(cache, path)
    lines = warnings(err)
    fine = code == 0 and out == (expected or plain) and len(lines) == 1 and all(w in lines[0] for w in words)
    check(name, fine and "packing again" in err and "mapped from" not in err, (code, err[-500:]))
    maps(name + ", then", cache, path, expected)


# ---- the first start writes, later ones map; whatever they run on
cache = folder()
code, out, err = start(cache)
check("first start", code == 0 and out == plain and "packed weights written to" in err and not warnings(err), err[-400:])
names = packs(cache)
check("one file", len(names) == 1 and re.fullmatch(rf"[0-9a-f]{{16}}-{os.path.getsize(model)}-{os.stat(model).st_mtime_ns}\.pack", names[0]), names)
good = os.path.join(cache, names[0])
maps("second start", cache)
maps("one thread", cache, more=["-t", "1"])
maps("from the environment", None, env={"BANTAM_PACK_CACHE": cache})
code, scalar, err = start(cache, env={"BANTAM_ISA": "scalar"})
check("another instruction set", code == 0 and scalar == plain and "mapped from" in err, err[-300:])
copy = os.path.join(home, "copy.gguf")
shutil.copy2(model, copy)
maps("the same model elsewhere", cache, copy)
before = os.stat(good)
maps("mapping changes nothing", cache)
check("same file", os.stat(good).st_mtime_ns == before.st_mtime_ns and os.stat(good).st_ino == before.st_ino)
built_in = folder()
code, out, err = start(built_in, None)
check("built-in model", code == 0 and out == plain and "written" in err, err[-300:])
maps("built-in model mapped", built_in, None)
code, out, err = run(["chat", "-m", model, "--pack-cache", cache, "-p", "What is the capital of France?", "--temp", "0"])
check("chat", (code, out) == (0, "The capital of France is Paris.\n") and "mapped from" in err, (code, out, err[-300:]))
code, out, err = run(["bench", "-m", model, "--pack-cache", cache, "-p", "8", "-n", "2", "-r", "1", "-lv", "3"])
check("bench", code == 0 and "mapped from" in err, (code, err[-300:]))
server = Server("-m", model, "--pack-cache", cache)
check("serve", server.json("GET", "/health")[0] == 200 and any("mapped from" in l for l in server.lines), server.lines)
check("serve ends", server.stop() == 0)
refuses = run(["logits", "--tokens", "1", "--pack-cache"])
check("no folder given", refuses[0] == 2 and "--pack-cache" in refuses[2], refuses)

# ---- files that cannot be used
whole = open(good, "rb").read()
header = dict(zip(FIELDS, struct.unpack_from(FORM, whole)))
check("header", header["offset"] == DATA and header["bytes"] == len(whole) - DATA and header["source"] == os.path.getsize(model), header)


def rotl(x, n):
    return (x << n | x >> (64 - n)) & M64


def mix(h, value):
    x = (h ^ value) * 0x9e3779b97f4a7c15 & M64
    return rotl(x, 29) ^ x >> 41


def hash_bytes(data, seed=0):
    lane = [mix(seed + i, 0x6a09e667f3bcc909) for i in range(8)]
    full = len(data) // 64 * 64
    for at in range(0, full, 64):
        lane = [rotl((h ^ w) * 0xd1342543de82ef95 & M64, 29) for h, w in zip(lane, struct.unpack_from("<8Q", data, at))]
    h = mix(seed, len(data))
    for x in lane:
        h = mix(h, x)
    for at in range(full, len(data), 8):
        h = mix(h, int.from_bytes(data[at:at + 8], "little"))
    return mix(mix(h, h >> 32), 0x94d049bb133111eb)


check("header's own sum", hash_bytes(whole[:72]) == header["sum"], header)


def with_field(name, value):
    """A header that is whole but says something else."""
    fields = {**header, name: value}
    start = struct.pack(FORM, *[fields[f] for f in FIELDS])[:72]
    return start + struct.pack("<Q", hash_bytes(start)) + whole[80:]


def flipped(at):
    return whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1:]


def replaced(name, data, *words):
    with open(good, "wb") as f:
        f.write(data)
    packs_again(name, cache, names[0], *words)


replaced("empty", b"", "empty")
for n in (1, 8, 40, 79):
    replaced(f"cut at {n}", whole[:n], "")
replaced("header alone", whole[:80], "expected")
replaced("cut before the data", whole[:DATA], "bytes, expected")
replaced("cut by one", whole[:-1], "bytes, expected")
replaced("longer by one", whole + b"\0", "bytes, expected")
replaced("text", b"hello, these are no weights\n" * 5000, "no file of packed weights")
replaced("zeros", bytes(len(whole)), "no file of packed weights")
for at in (12, 20, 30, 36, 44, 60, 66, 75):
    replaced(f"header byte {at}", flipped(at), "header is damaged")
for at in (DATA, DATA + 12345, (DATA + len(whole)) // 2, len(whole) - 1):
    replaced(f"data byte {at}", flipped(at), "data is damaged")
replaced("format", with_field("format", 1), "format is version 1")
replaced("older layout", with_field("version", header["version"] - 1), "layout version", f"expected {header['version']}")
replaced("foreign source size", with_field("source", 12345), "another model")
replaced("foreign content", with_field("fingerprint", 1), "another model")
replaced("older model", with_field("mtime", header["mtime"] - 1), "another model")
replaced("other order", with_field("layout", 1), "order")
for value in (0, 64, 1 << 63, M64):
    replaced(f"data at {value}", with_field("offset", value), "expected")
for value in (0, header["bytes"] - 64, header["bytes"] + 64, 1 << 63, M64):
    replaced(f"data bytes {value}", with_field("bytes", value), "expected")
replaced("smaller data, shorter file", with_field("bytes", header["bytes"] - 64)[:-64], "size of the data")
replaced("checksum", with_field("checksum", 0), "data is damaged")
os.unlink(good)
os.mkfifo(good)
packs_again("a pipe", cache, "not a regular file")
os.unlink(good)
os.mkdir(good)
code, out, err = start(cache)
check("a folder in its place", code == 0 and out == plain and len(warnings(err)) == 2 and "running from memory" in err, err[-400:])
check("nothing left beside it", packs(cache) == names, packs(cache))
os.rmdir(good)
os.symlink("/nonexistent/file", good)
code, out, err = start(cache)
check("a dangling link", code == 0 and out == plain and "written" in err, err[-400:])
maps("a dangling link, then", cache)

# ---- a disk that fails under the data: read() says so, where a mapping would be a signal
trace = failing_calls("pread64:error=EIO:when=2+", good)
if trace:
    r = subprocess.run([*trace, f"{BIN}/bantam", "logits", "-m", model, "--tokens", "1,2,3,4,5", "--format", "f32", "-t", "1", "--pack-cache", cache],
                       capture_output=True, timeout=60)
    err = r.stderr.decode()
    lines = warnings(err)
    fine = r.returncode == 0 and r.stdout == plain and len(lines) == 1 and "Input/output error" in lines[0]
    check("a disk that fails", fine and "packing again" in lines[0], (r.returncode, err[-400:]))
    maps("a disk that fails, then", cache)
else:
    not_run("a disk that fails", "needs strace and the right to trace")

# ---- the model changes under the same name
os.utime(model, ns=(1, os.stat(model).st_mtime_ns + 1))
code, out, err = start(cache)
touched = sorted(set(packs(cache)) - set(names))
check("model touched: a file of its own", code == 0 and out == plain and len(touched) == 1 and not warnings(err), (packs(cache), err[-400:]))
maps("model touched, then", cache)
maps("the copy keeps the first one", cache, copy)
check("two copies, two files", packs(cache) == sorted(names + touched), packs(cache))
names, whole = touched, open(os.path.join(cache, touched[0]), "rb").read()
changed = bytearray(open(model, "rb").read())
at = len(changed) - 20000
changed[at:at + 2000] = bytes(x ^ 0xff for x in changed[at:at + 2000])
other = os.path.join(home, "other.gguf")
with open(other, "wb") as f:
    f.write(changed)
stamp = os.stat(model)
os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
code, different, err = start(None, other)
check("another model answers otherwise", code == 0 and different != plain)
code, out, err = start(cache, other)
check("another model gets its own file or a new one", code == 0 and out == different and "mapped from" not in err, err[-400:])
maps("another model, then", cache, other, different)

# ---- folders that cannot be written
as_file = os.path.join(home, "file")
open(as_file, "w").close()
for name, place in (("a file as folder", as_file), ("no such parent", home + "/no/such"), ("/proc", "/proc/bantam")):
    code, out, err = start(place)
    lines = warnings(err)
    check(name, code == 0 and out == plain and len(lines) == 1 and "running from memory" in lines[0], (code, err[-400:]))
locked = folder()
os.mkdir(locked)
os.chmod(locked, 0o555)
drop = {"user": 65534} if os.getuid() == 0 else {}
if drop:  # the program and the model where that user can reach them
    reach = tempfile.mkdtemp()
    os.chmod(reach, 0o755)
    shutil.copy(f"{BIN}/bantam", reach)
    shutil.copy(model, reach)
    locked = os.path.join(reach, "locked")
    os.mkdir(locked)
    os.chmod(locked, 0o555)
place = reach if drop else None
r = subprocess.run([(place or BIN) + "/bantam", "logits", "-m", (place + "/model.gguf") if place else model, "--tokens", "1,2,3,4,5",
                    "--format", "f32", "--pack-cache", locked], capture_output=True, timeout=60, **drop)
err = r.stderr.decode()
check("read-only folder", r.returncode == 0 and r.stdout == plain and "Permission denied" in err and "running from memory" in err, err[-400:])
check("read-only folder stays empty", packs(locked) == [], packs(locked))
if place:
    shutil.rmtree(place)
# Any call that writes may fail: one warning, the right logits, and nothing is left.
for what in ("fallocate:error=ENOSPC", "pwrite64,write:error=ENOSPC:when=2", "fsync,fdatasync:error=EIO", "rename,renameat,renameat2:error=EIO",
             "flock:error=ENOLCK"):
    broken = folder()
    os.mkdir(broken)
    trace = failing_calls(what, broken + "/" + names[0] + ".unfinished", broken + "/" + names[0])
    if not trace:
        not_run("a disk that fails: " + what, "needs strace and the right to trace")
        continue
    r = subprocess.run([*trace, f"{BIN}/bantam", "logits", "-m", model, "--tokens", "1,2,3,4,5", "--format", "f32", "--pack-cache", broken],
                       capture_output=True, timeout=60)
    err = r.stderr.decode()
    check(f"a disk that fails: {what}", r.returncode == 0 and r.stdout == plain and len(warnings(err)) == 1, (r.returncode, err[-400:]))
    check(f"a disk that fails: {what}: nothing is left", packs(broken) == [], packs(broken))
    check(f"a disk that fails: {what}: then it is written", start(broken)[0] == 0 and len(packs(broken)) == 1, packs(broken))
    maps(f"a disk that fails: {what}, then", broken)
full = folder()  # a limit on the size of files: there is no room from the start


def limit():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200000, 200000))


code, out, err = start(full, preexec_fn=limit, restore_signals=False)
check("full disk", code == 0 and out == plain and len(warnings(err)) == 1 and "too large" in err, (code, err[-400:]))
check("full disk leaves nothing", packs(full) == [], packs(full))
check("then there is room", start(full)[0] == 0)
maps("after the full disk", full)

# ---- other starts: killed ones, one that writes, many at once
left = folder()
os.mkdir(left)
unfinished = os.path.join(left, names[0] + ".unfinished")
open(unfinished, "wb").write(whole[:len(whole) // 2])
# The name depends on the model file alone, so a killed start of it would have left exactly this.
code, out, err = start(left)
check("what a killed start left", code == 0 and out == plain and packs(left) == names, (packs(left), err[-300:]))
maps("what a killed start left, then", left)
open(unfinished, "wb").write(b"left")
with open(unfinished, "r+b") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    maps("beside one that is being written", left)
    check("which stays", os.path.exists(unfinished))
maps("beside one that was left", left)
check("which goes", packs(left) == names, packs(left))
os.unlink(os.path.join(left, names[0]))
with open(unfinished, "wb") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    code, out, err = start(left)
    check("another start is writing", code == 0 and out == plain and "another process" in err and not warnings(err), err[-300:])
killed, bad = folder(), []
for i in range(40):
    p = subprocess.Popen([f"{BIN}/bantam", "logits", "-m", model, "--tokens", "1", "--pack-cache", killed],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.002 * i)
    p.kill()
    p.wait()
    for name in packs(killed):
        if name.endswith(".pack") and len(open(os.path.join(killed, name), "rb").read()) != len(whole):
            bad.append(i)
        if name.endswith(".pack") and i < 30:
            os.unlink(os.path.join(killed, name))
check("killed while writing leaves no broken file", not bad, bad)
code, out, err = start(killed)
check("after the kills", code == 0 and out == plain and not warnings(err), err[-300:])
maps("after the kills, then", killed)
for round in range(3):
    many = folder()
    args = [f"{BIN}/bantam", "logits", "-m", model, "--tokens", "1,2,3,4,5", "--format", "f32", "--pack-cache", many]
    starts = [subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
    results = [(*p.communicate(), p.returncode) for p in starts]
    fine = all(code == 0 and out == plain and b"warning" not in err for out, err, code in results)
    check(f"six starts at once {round}", fine and packs(many) == names, (packs(many), [r[1][-200:] for r in results]))
    maps(f"six starts at once {round}, then", many)
busy = Server("-m", model, "--pack-cache", many)
file = os.path.join(many, names[0])
os.rename(file, file + ".old")  # a damaged copy takes its place while the server has the old one mapped
whole = open(file + ".old", "rb").read()
open(file, "wb").write(flipped(DATA + 5))
packs_again("replaced under a running server", many, "damaged")
status, reply = busy.json("POST", "/completion", {"prompt": "Hello", "n_predict": 4, "temperature": 0})
check("the server keeps its mapping", status == 200 and reply["content"], reply)
check("the server ends", busy.stop() == 0)

# ---- the page cache: kept where there is room, dropped where memory is short
libc = ctypes.CDLL(None, use_errno=True)


def resident(path):
    with open(path, "r+b") as f:
        area = mmap.mmap(f.fileno(), 0)
        pages = (len(area) + 4095) // 4096
        seen = (ctypes.c_ubyte * pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(area)), seen) == 0
        return sum(x & 1 for x in seen) / pages


os.sync()
for mib, kept in (("4000", True), ("11", False)):
    open(model, "rb").read()
    code, out, err = start(None, env={"BANTAM_MEM_AVAILABLE_MIB": mib}, more=["-c", "256"])
    part = resident(model)
    check(f"{mib} MiB available", code == 0 and out == plain and (part > 0.9 if kept else part < 0.1), (part, err[-300:]))
shutil.rmtree(home)
finish()
