"""Small helpers of the Python tests: the binaries, counting, a server on a free port."""
import json, os, re, shutil, subprocess, sys, threading, http.client

BIN = os.environ.get("BANTAM_BIN", "build/release/bin")
SMOLLM2 = os.environ.get("BANTAM_SMOLLM2", "build/models/SmolLM2-135M-Instruct.Q4_1.gguf")
FULL = os.environ.get("BANTAM_FULL") == "1"
TINY = "models/tiny-1bit-chat.gguf"
passed = failed = skipped = 0


def check(name, ok, detail=""):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print(f"FAIL {name}: {detail}")
    sys.stdout.flush()
    return ok


def not_run(name, why):
    global skipped
    skipped += 1
    print(f"not run: {name}: {why}")
    sys.stdout.flush()


def failing_calls(what, *paths):
    """The start of a command line whose system calls on `paths` fail as strace's `inject` says, or None where nobody may trace."""
    strace = shutil.which("strace")
    if not strace or os.environ.get("ASAN_OPTIONS") or subprocess.run([strace, "-o", "/dev/null", "true"], capture_output=True).returncode != 0:
        return None
    on = [word for path in paths for form in (path, os.path.abspath(path)) for word in ("-P", form)]
    return [strace, "-f", "-qq", "-o", "/dev/null", *on, "-e", "inject=" + what]


def finish():
    if skipped:
        print(f"{skipped} not run")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


def run(args, env=None, stdin="", timeout=120, program="bantam", binary=False):
    result = subprocess.run([f"{BIN}/{program}", *args], capture_output=True, input=stdin.encode() if stdin is not None else None,
                            timeout=timeout, env={**os.environ, **(env or {})})
    out = result.stdout if binary else result.stdout.decode("utf-8", "replace")
    return result.returncode, out, result.stderr.decode("utf-8", "replace")


class Server:
    def __init__(self, *args, env=None, program="bantam"):
        command = [f"{BIN}/{program}", *(["serve"] if program == "bantam" else []), "--port", "0", *args]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
        self.lines, self.port = [], None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            found = re.search(r"listening on http://[^:]+:(\d+)", line)
            if found:
                self.port = int(found.group(1))
                break
        assert self.port, "\n".join(self.lines)
        threading.Thread(target=lambda: [self.lines.append(l.rstrip()) for l in self.process.stderr], daemon=True).start()

    def raw(self, method, path, body=None, headers=None, timeout=120):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        c.request(method, path, body, headers or {})
        r = c.getresponse()
        data = r.read()
        c.close()
        return r.status, dict(r.getheaders()), data

    def json(self, method, path, body=None, headers=None):
        status, _, data = self.raw(method, path, None if body is None else json.dumps(body), headers)
        return status, json.loads(data)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(20)
