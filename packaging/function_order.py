#!/usr/bin/env python3
"""Writes packaging/function-order.txt: the functions that a daemon calls from its start on, in the order of
their first calls. build.rs has the linker lay them out in that order, so that few of the binary's pages are
touched, for those are most of an idle daemon's memory.

    OPSRAMP_EXPORTER_LINK_MAP=$PWD/target/link.map cargo build --release --locked
    packaging/function_order.py target/release/opsramp-exporter target/link.map

gdb and openssl are needed. The names depend on versions and on the profile, and hardly on our own code: those that a later
binary has no more are passed over by the linker. It is enough to do this before a release.
"""

import contextlib
import http.client
import os
import pathlib
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

try:
    import gdb
except ImportError:
    gdb = None

OUTPUT = pathlib.Path(__file__).with_name("function-order.txt")
# What a step may take under gdb, which stops at each function once.
PATIENCE = 120


# === inside of gdb ===


def trace():
    """Runs the program until it ends, and writes where functions begin, in the order of their first calls."""
    for command in (
        "set pagination off",
        "set confirm off",
        "set breakpoint always-inserted on",
        "set auto-solib-add off",
        "set print thread-events off",
        *(f"handle {signal} nostop noprint pass" for signal in ("SIGTERM", "SIGHUP", "SIGPIPE")),
    ):
        gdb.execute(command)
    gdb.execute("starti", to_string=True)
    pathlib.Path(os.environ["TRACE_PID"]).write_text(str(gdb.selected_inferior().pid))
    mappings = gdb.execute("info proc mappings", to_string=True)
    base = int(re.search(r"^\s*(0x[0-9a-f]+)", mappings, re.MULTILINE)[1], 16)
    called = []

    class Function(gdb.Breakpoint):
        def __init__(self, address):
            super().__init__(f"*{base + address}", internal=True)
            self.silent = True
            self.address = address

        def stop(self):
            called.append(self.address)
            self.enabled = False
            return False

    for address in pathlib.Path(os.environ["TRACE_FUNCTIONS"]).read_text().split():
        Function(int(address))
    gdb.execute("continue", to_string=True)
    pathlib.Path(os.environ["TRACE_CALLED"]).write_text("\n".join(map(str, called)))


# === outside ===


def functions(link_map):
    """The names of its functions, by where they begin."""
    found = {}
    section = ""
    for line in link_map.read_text().splitlines():
        # Where it is, where it is loaded, size, alignment; then, each further to the right, a section of the program,
        # one of an object file, a symbol.
        parts = re.match(r"\s*([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)\s+\d+ ( *)(.*)", line)
        if not parts:
            continue
        address, size, indent, name = parts.groups()
        if not indent:
            section = name
        elif section == ".text" and len(indent) > 8 and int(size, 16):
            found.setdefault(int(address, 16), []).append(name)
    if len(found) < 1000:
        sys.exit(f"{link_map} is no map that LLD has written")
    return found


def wait_for(log, look):
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(0.1)
    sys.exit(f"the daemon was waited for in vain:\n{log.read_text()}")


def get(connection, path):
    """As Prometheus does."""
    accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    connection.request("GET", path, headers={"Accept": accept, "Accept-Encoding": "gzip"})
    connection.getresponse().read()


@contextlib.contextmanager
def simulator(binary):
    """OpsRamp, which is not traced; its port."""
    command = [binary, "demo", "--simulator.listen-address=127.0.0.1:0", "--web.listen-address=127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        port = next(found[1] for line in process.stderr if (found := re.search(r"simulator +http://[\d.]+:(\d+)", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield int(port)
    finally:
        process.terminate()
        process.wait()


def serve_tls(folder, port):
    """A port that speaks TLS before the one of that number."""
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "ca.pem"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*command, *subject, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    listener = socket.create_server(("127.0.0.1", 0))

    def relay(client):
        with contextlib.suppress(OSError), context.wrap_socket(client, server_side=True) as client:
            with socket.create_connection(("127.0.0.1", port)) as server:
                while True:
                    ready = [client] if client.pending() else select.select([client, server], [], [])[0]
                    for source, target in ((client, server), (server, client)):
                        if source in ready:
                            data = source.recv(65536)
                            if not data:
                                return
                            target.sendall(data)

    def accept():
        while True:
            threading.Thread(target=relay, args=listener.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def configured(folder, name, text):
    """The arguments for a configuration file."""
    (folder / name).write_text(text)
    return [f"--config.file={folder / name}"]


def run(binary, folder, arguments, addresses, more):
    """Which of `addresses`, where functions begin, a daemon calls, in their order; with `more`, it is asked for
    more than an idle one is."""
    names = {"TRACE_PID": folder / "pid", "TRACE_FUNCTIONS": folder / "functions", "TRACE_CALLED": folder / "called"}
    for file in names.values():
        file.unlink(missing_ok=True)
    names["TRACE_FUNCTIONS"].write_text("\n".join(map(str, addresses)))
    command = ["gdb", "-nx", "-q", "-batch", "-x", __file__, "--args", binary, *arguments]
    environment = os.environ | {name: str(file) for name, file in names.items()}
    log = folder / "log"
    with open(log, "w") as output:
        gdb_process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    try:
        listening = wait_for(log, lambda: re.search(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text()))
        kept, other = (http.client.HTTPConnection("127.0.0.1", int(listening[1]), PATIENCE) for _ in range(2))
        for _ in range(5):
            get(kept, "/metrics")
            get(other, "/metrics")
            other.close()
            time.sleep(3)
        pid = int(names["TRACE_PID"].read_text())
        if more:
            for path in ("/", "/-/healthy", "/-/ready", "/api/v1/status", "/api/v1/alerts", "/nothing"):
                get(other, path)
            os.kill(pid, signal.SIGHUP)
            time.sleep(5)
        os.kill(pid, signal.SIGTERM)
        gdb_process.wait(PATIENCE)
    finally:
        gdb_process.kill()
        gdb_process.wait()
    if not names["TRACE_CALLED"].exists():
        sys.exit(f"gdb has failed:\n{log.read_text()}")
    return [int(address) for address in names["TRACE_CALLED"].read_text().split()]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    binary = str(pathlib.Path(sys.argv[1]).resolve())
    names = functions(pathlib.Path(sys.argv[2]))
    with tempfile.TemporaryDirectory() as temporary, simulator(binary) as port:
        folder = pathlib.Path(temporary)
        tls_port = serve_tls(folder, port)
        (folder / "secret").write_text("demo-secret")
        brief = f"""\
accounts:
- {{name: acme, url: "http://127.0.0.1:{port}", client_id: demo-key, client_secret_file: {folder}/secret, tenants: [{{id: client_1}}]}}
searches: [{{name: open, query: "actions:OPEN", interval: 2s}}]
log: {{sinks: [{{type: file, path: {folder}/alerts.jsonl}}]}}
state: {{path: {folder}/state.db}}
web: {{listen_addresses: ["127.0.0.1:0"]}}
"""
        long = f"""\
accounts:
  - name: acme
    url: "https://127.0.0.1:{tls_port}"
    client_id: 'demo-key'
    client_secret_file: {folder}/secret
    tls:
      ca_file: {folder}/ca.pem
    tenants:
      - id: client_1
        name: ACME   # as it is shown
searches:
  - name: critical
    query: "actions:OPEN+currentState:CRITICAL"
    interval: 2s
  - name: open
    interval: 3s
log:
  sinks:
    - type: file
      path: {folder}/lines.jsonl
    - type: stdout
state:
  path: {folder}/other.db
web:
  listen_addresses:
    - 127.0.0.1:0
"""
        flags = [
            f"--opsramp.url=http://127.0.0.1:{port}",
            "--opsramp.tenant=client_1",
            "--opsramp.client-id=demo-key",
            f"--opsramp.client-secret-file={folder}/secret",
            f"--state.path={folder}/third.db",
            "--web.listen-address=127.0.0.1:0",
        ]
        # What every daemon calls comes first, then what only some do.
        brief = configured(folder, "brief.yml", brief)
        long = configured(folder, "long.yml", long)
        called = []
        for arguments, more in ((brief, False), (brief, False), (flags, False), (long, False), (long, True)):
            called += run(binary, folder, arguments, names.keys() - set(called), more)
    order = [name for address in called for name in names[address]]
    OUTPUT.write_text("".join(f"{name}\n" for name in order))
    print(f"{OUTPUT}: {len(order)} functions")


if gdb:
    trace()
elif __name__ == "__main__":
    main()
