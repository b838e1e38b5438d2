#!/usr/bin/env python3
"""The chat page in a real browser (headless Chromium by its DevTools protocol): typed, asked, streamed, stopped, escaped."""
import base64, json, os, re, shutil, subprocess, sys, tempfile, time, urllib.request
sys.path[:0] = ["tests/support"]
from harness import *
import websocket

program = shutil.which("chromium") or shutil.which("chromium-browser")
if not check("chromium is installed", program is not None):
    finish()
server = Server()
profile = tempfile.mkdtemp()
browser = subprocess.Popen([program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-allow-origins=*",
                            "--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=900,700", "about:blank"],
                           stderr=subprocess.PIPE, text=True)
port = None
for line in browser.stderr:
    if found := re.search(r"DevTools listening on ws://127.0.0.1:(\d+)/", line):
        port = found.group(1)
        break
pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
tab = websocket.create_connection(next(p for p in pages if p["type"] == "page")["webSocketDebuggerUrl"], timeout=60)
serial = 0


def call(method, **params):
    global serial
    serial += 1
    tab.send(json.dumps({"id": serial, "method": method, "params": params}))
    while (reply := json.loads(tab.recv())).get("id") != serial:
        pass
    return reply.get("result", reply)


def js(expression):
    return call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)["result"].get("value")


def wait(expression, seconds=30):
    deadline = time.time() + seconds
    while time.time() < deadline:
        if js(expression):
            return True
        time.sleep(0.1)
    return False


def visit(path):
    call("Page.navigate", url=f"http://127.0.0.1:{server.port}/{path}")
    wait("document.readyState === 'complete' && location.port !== ''")


def ask(text):
    js(f"document.getElementById('input').value = {json.dumps(text)}; document.getElementById('form').requestSubmit()")


LAST = "[...document.querySelectorAll('.assistant')].at(-1)?.textContent"
visit("")
check("the model and the cache types are named", wait("document.getElementById('model').textContent.includes('K q8_0')"))
js("document.getElementById('temperature').value = '0'")
ask("What is the capital of France?")
check("the answer is streamed", wait(f"{LAST} === 'The capital of France is Paris.'"), js(LAST))
check("speeds and context are shown", wait("/tok\\/s.*context \\d+ of \\d+/.test(document.getElementById('status').textContent)"))
os.makedirs("build/logs", exist_ok=True)
with open("build/logs/page.png", "wb") as f:
    f.write(base64.b64decode(call("Page.captureScreenshot")["data"]))
ask("What is the capital of Denmark?")
check("the conversation goes on", wait(f"({LAST} ?? '').includes('Copenhagen')"), js(LAST))
visit("")
check("the conversation survives a reload", wait("document.querySelectorAll('.msg').length === 4"), js("document.querySelectorAll('.msg').length"))
js("document.getElementById('new').click()")
check("a new chat is empty", js("document.querySelectorAll('.msg').length") == 0)
ask("<img src=x onerror='window.hacked=1'>")
check("text is never markup", wait("document.querySelector('.user').textContent.startsWith('<img')") and
      js("document.querySelectorAll('main img').length") == 0 and not js("window.hacked"))
check("the form is ready again", wait("!document.getElementById('send').hidden", 60))
visit("?q=What%20is%20the%20capital%20of%20Italy%3F")
check("a link carries a question", wait("document.querySelector('.user')?.textContent === 'What is the capital of Italy?'"))
browser.terminate()
browser.wait(20)
check("server ends cleanly", server.stop() == 0)
finish()
