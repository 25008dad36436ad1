"""What becomes of an application's socket that is put into a sockmap, on this kernel. Needs root.

    sockmap.py contract    what its system calls answer, as JSON: outside, in a sockmap, in one that has a verdict
                           program as well
    sockmap.py outside     the first of these alone: it puts nothing into a map
    sockmap.py order       whether bytes stay in order when a connection leaves the shortcut, and comes back
    sockmap.py unread      how much a sender gets rid of while the receiver does not read
    sockmap.py gain        a question and its answer, past TCP in neither, one or both directions
    sockmap.py nginx       a real program behind a sockmap whose program lets everything pass (needs nginx)

docs/shortcut.md tells what follows from it. A pair of sockets stands for an application and the agent on one host.
"""

import fcntl
import json
import os
import random
import select
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request

from kernel import *

KINDS = ("outside", "sockmap", "verdict")
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
# Time enough for what happens meanwhile, also on a busy machine. Seconds.
MOMENT = 0.1


class Pair:
    """`app` and `agent`, connected; each in a sockmap of its own unless `kind` is "outside"."""

    def __init__(self, kind):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.app = socket.create_connection(listener.getsockname())
            self.agent = listener.accept()[0]
        self.maps = [new_map(SOCKMAP, 4, 4, 1) for _ in range(2)]
        self.switches = [new_map(ARRAY, 4, 4, 1) for _ in range(2)]
        if kind == "outside":
            return
        for own, other in ((0, 1), (1, 0)):
            attach(redirecting(self.switches[own], self.maps[other]), self.maps[own], AT_SK_MSG_VERDICT)
            if kind == "verdict":
                attach(passing(SK_SKB), self.maps[own], AT_SK_SKB_VERDICT)
        for own, end in enumerate((self.app, self.agent)):
            write(self.maps[own], ZERO, struct.pack("I", end.fileno()))

    def from_app(self, past_tcp):
        write(self.switches[0], ZERO, struct.pack("I", past_tcp))

    def from_agent(self, past_tcp):
        write(self.switches[1], ZERO, struct.pack("I", past_tcp))

    def close(self):
        for fd in (*self.maps, *self.switches):
            os.close(fd)
        self.app.close()
        self.agent.close()


def error(call, *arguments):
    """What `call` returns, or the name of its error."""
    try:
        return call(*arguments)
    except OSError as failure:
        return failure.strerror


def receive(end):
    """recv(2) itself: Python would try again after a signal."""
    buffer = ctypes.create_string_buffer(100)
    got = LIBC.recv(end.fileno(), buffer, 100, 0)
    return got if got >= 0 else os.strerror(ctypes.get_errno())


def later(seconds, call, *arguments):
    def run():
        try:
            call(*arguments)
        except OSError:
            pass  # the pair was closed: the application did not wait

    threading.Timer(seconds, run).start()


def waiting(end):
    """FIONREAD: how many bytes can be read."""
    answer = bytearray(4)
    fcntl.ioctl(end.fileno(), termios.FIONREAD, answer, True)
    return struct.unpack("I", answer)[0]


def splice(end):
    end.setblocking(False)
    ends = os.pipe()
    moved = error(os.splice, end.fileno(), ends[1], 100, None, None, os.SPLICE_F_NONBLOCK)
    for fd in ends:
        os.close(fd)
    return moved


# Each of these is one line of the contract: a connected pair in, what the application sees out.


def bytes_are_spliced_by_tcp(pair):
    pair.agent.send(b"hello")
    time.sleep(MOMENT)
    return splice(pair.app)


def bytes_are_spliced_past_tcp(pair):
    pair.from_agent(True)
    pair.agent.send(b"hello")
    time.sleep(MOMENT)
    return splice(pair.app)


def unread_bytes_by_tcp(pair):
    pair.agent.send(b"hello")
    time.sleep(MOMENT)
    return waiting(pair.app)


def unread_bytes_past_tcp(pair):
    pair.from_agent(True)
    pair.agent.send(b"hello")
    time.sleep(MOMENT)
    return waiting(pair.app)


def short_read_then_edge(pair):
    """Edge-triggered, and a read that does not fill its buffer has emptied the socket: tokio, mio and others."""
    pair.app.setblocking(False)
    poll = select.epoll()
    poll.register(pair.app, select.EPOLLIN | select.EPOLLET)
    poll.poll(MOMENT)
    pair.from_agent(True)
    pair.agent.send(b"first ")
    pair.from_agent(False)
    pair.agent.send(b"second")
    time.sleep(MOMENT)
    got = b""
    while poll.poll(4 * MOMENT):
        got += pair.app.recv(100)
    poll.close()
    return got.decode()


def recv_over_a_signal(pair):
    """With SA_RESTART, the kernel goes on with recv(2) after the handler."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, MOMENT, MOMENT)
    later(8 * MOMENT, pair.agent.send, b"hello")
    got = receive(pair.app)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return got


def recv_beside_a_writer(pair):
    """Another thread of the application sends more than fits; what makes room wakes the reader as well."""
    size = 3_000_000
    pair.app.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)

    def agent():
        left = size
        while left:
            left -= len(pair.agent.recv(65_536))
        time.sleep(2 * MOMENT)
        pair.agent.send(b"hello")

    writer = threading.Thread(target=pair.app.sendall, args=(bytes(size),))
    writer.start()
    later(2 * MOMENT, agent)
    got = receive(pair.app)
    writer.join()
    return got


def recv_of_a_reset(pair):
    def reset():
        pair.agent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.agent.close()

    later(2 * MOMENT, reset)
    return receive(pair.app)


def recv_all(pair, past_tcp):
    pair.from_agent(past_tcp)
    pair.agent.send(b"0123456789")
    later(2 * MOMENT, pair.agent.send, b"0123456789")
    return len(pair.app.recv(20, socket.MSG_WAITALL))


def waitall_by_tcp(pair):
    return recv_all(pair, False)


def waitall_past_tcp(pair):
    return recv_all(pair, True)


def readable_below_low_watermark(pair):
    pair.app.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    pair.from_agent(True)
    pair.agent.send(b"hello")
    return bool(select.select([pair.app], [], [], 2 * MOMENT)[0])


def zero_copy_completions(pair):
    pair.app.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    pair.from_app(True)
    pair.app.send(bytes(20_000), MSG_ZEROCOPY)
    poll = select.poll()
    poll.register(pair.app, 0)
    return len(poll.poll(int(4000 * MOMENT)))


def send_after_shutdown(pair):
    pair.from_app(True)
    pair.app.shutdown(socket.SHUT_WR)
    return error(pair.app.send, b"hello")


def peer_closes_without_reading(pair):
    """TCP tells the sender, with a reset, that what it sent was not read."""
    pair.from_app(True)
    pair.app.send(b"hello")
    time.sleep(MOMENT)
    pair.agent.close()
    time.sleep(MOMENT)
    return error(lambda: len(pair.app.recv(10)))


def bytes_after_removal(pair):
    """What is left to read of ten bytes when the socket is taken out of the map again."""
    pair.from_agent(True)
    pair.agent.send(b"0123456789")
    time.sleep(MOMENT)
    try:
        remove(pair.maps[0], ZERO)
    except OSError:
        pass  # it was in none
    pair.app.setblocking(False)
    return error(lambda: len(pair.app.recv(20)))


CONTRACT = (
    bytes_are_spliced_by_tcp,
    bytes_are_spliced_past_tcp,
    unread_bytes_by_tcp,
    unread_bytes_past_tcp,
    short_read_then_edge,
    recv_over_a_signal,
    recv_beside_a_writer,
    recv_of_a_reset,
    waitall_by_tcp,
    waitall_past_tcp,
    readable_below_low_watermark,
    zero_copy_completions,
    send_after_shutdown,
    peer_closes_without_reading,
    bytes_after_removal,
)


def outside():
    contract(KINDS[:1])


def contract(kinds=KINDS):
    seen = {}
    for observe in CONTRACT:
        for kind in kinds:
            pair = Pair(kind)
            seen.setdefault(observe.__name__, {})[kind] = observe(pair)
            pair.close()
    print(json.dumps(seen, indent=1))


def transfer(kind, comes_back, seed):
    """Random pieces to the application, which reads random amounts: "same", "other bytes" or "cut short"."""
    dice = random.Random(seed)
    pieces = [dice.randbytes(dice.randint(1, 3000)) for _ in range(60)]
    leave = dice.randrange(len(pieces))
    whole, got, pair = b"".join(pieces), bytearray(), Pair(kind)

    def send():
        pair.from_agent(True)
        for number, piece in enumerate(pieces):
            if number == leave:
                pair.from_agent(False)
            if comes_back and number == leave + 10:
                sent = sum(map(len, pieces[:number]))
                while len(got) < sent:
                    time.sleep(0.0005)
                pair.from_agent(True)
            pair.agent.send(piece)
        pair.agent.shutdown(socket.SHUT_WR)

    pair.app.settimeout(10)
    sender = threading.Thread(target=send)
    sender.start()
    while piece := pair.app.recv(dice.randint(1, 9000)):
        got += piece
    sender.join()
    pair.close()
    return "same" if got == whole else "cut short" if whole.startswith(got) else "other bytes"


def order():
    seen = {}
    for kind in KINDS:
        for comes_back in (False, True):
            ends = [transfer(kind, comes_back, seed) for seed in range(100)]
            way = "leaves and comes back when all is read" if comes_back else "leaves"
            seen[f"{kind}, {way}"] = {end: ends.count(end) for end in sorted(set(ends))}
    print(json.dumps(seen, indent=1))


def unread(limit=100_000_000):
    seen = {}
    for kind in KINDS:
        pair = Pair(kind)
        pair.from_app(True)
        pair.app.setblocking(False)
        taken, until = 0, time.monotonic() + 5
        while taken < limit and time.monotonic() < until:
            try:
                taken += pair.app.send(bytes(65_536))
            except BlockingIOError:
                break
        seen[kind] = taken
        pair.close()
    print(json.dumps(seen))


def answer(end, size, times):
    """The agent's side of `gain`: edge-triggered, as the application's."""
    poll = select.epoll()
    poll.register(end, select.EPOLLIN | select.EPOLLET)
    for _ in range(times):
        exchange_read(end, poll, 100)
        os.write(end.fileno(), bytes(size))


def exchange_read(end, poll, size):
    while size:
        try:
            size -= len(os.read(end.fileno(), size))
        except BlockingIOError:
            poll.poll()


def ask(kind, from_app, from_agent, size, times=20_000):
    """Microseconds for a question of 100 bytes and an answer of `size`, both programs on one CPU."""
    pair = Pair(kind)
    if kind != "outside":
        pair.from_app(from_app)
        pair.from_agent(from_agent)
    for end in (pair.app, pair.agent):
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    os.sched_setaffinity(0, {0})
    child = os.fork()
    if child == 0:
        answer(pair.agent, size, times)
        os._exit(0)
    poll = select.epoll()
    poll.register(pair.app, select.EPOLLIN | select.EPOLLET)
    began = time.monotonic()
    for _ in range(times):
        os.write(pair.app.fileno(), bytes(100))
        exchange_read(pair.app, poll, size)
    took = time.monotonic() - began
    os.waitpid(child, 0)
    pair.close()
    return took / times * 1e6


def gain(rounds=5):
    ways = [("outside", False, False)]
    ways += [(kind, *past) for kind in KINDS[1:] for past in ((0, 0), (1, 0), (0, 1), (1, 1))]
    for size in (200, 8000):
        took = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                took[way].append(ask(*way, size))
        base = statistics.median(took[ways[0]])
        for (kind, from_app, from_agent), all_took in took.items():
            past = {(0, 0): "none", (1, 0): "question", (0, 1): "answer", (1, 1): "both"}[from_app, from_agent]
            median = statistics.median(all_took)
            print(f"answer of {size:4}, {kind:7}, past TCP: {past:8} {median:6.2f} us {base / median:.2f} x")


def nginx():
    """nginx proxies 8 MB; its connections to the origin are enrolled, and a program lets all their bytes pass."""
    mount = next(line.split()[1] for line in open("/proc/self/mounts") if line.split()[2] == "cgroup2")
    cgroup, folder = f"{mount}/sockmap-{os.getpid()}", tempfile.mkdtemp()
    os.mkdir(cgroup)
    os.chmod(folder, 0o755)
    with open(f"{folder}/big", "wb") as file:
        file.write(bytes(8_000_000))
    ports = [free_port(), free_port()]
    services = [f"root {folder};", f"location / {{ proxy_pass http://127.0.0.1:{ports[0]}; }}"]
    running = []
    try:
        for port, service in zip(ports, services):
            running.append(start_nginx(folder, port, service, cgroup if running else None))
        time.sleep(1)
        print("outside:", fetch(ports[1]), flush=True)
        for verdict in (False, True):
            sockets, held = new_map(SOCKHASH, 4, 8, 1024), os.open(cgroup, os.O_RDONLY)
            attach(passing(SK_MSG), sockets, AT_SK_MSG_VERDICT)
            if verdict:
                attach(passing(SK_SKB), sockets, AT_SK_SKB_VERDICT)
            link = link_to_cgroup(enrolling(sockets), held, AT_SOCK_OPS)
            print(f"{KINDS[1 + verdict]}:", fetch(ports[1]), flush=True)
            os.close(link)
    finally:
        for process in running:
            process.kill()
            process.wait()
        shutil.rmtree(folder)
        time.sleep(0.2)
        os.rmdir(cgroup)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def start_nginx(folder, port, service, cgroup):
    path = f"{folder}/{port}.conf"
    with open(path, "w") as file:
        file.write(
            f"daemon off; master_process off; pid {folder}/{port}.pid; error_log {folder}/{port}.log; events {{}}"
            f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; {service} }} }}"
        )
    into = ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', cgroup] if cgroup else []
    return subprocess.Popen([*into, "nginx", "-p", folder, "-c", path], stderr=subprocess.DEVNULL)


def fetch(port):
    began = time.monotonic()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/big", timeout=10) as response:
            said = f"{len(response.read())} bytes"
    except OSError as failure:
        said = f"no answer ({failure})"
    return f"{said} after {time.monotonic() - began:.2f} s"


if __name__ == "__main__":
    verbs = {verb.__name__: verb for verb in (contract, outside, order, unread, gain, nginx)}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        raise SystemExit(__doc__)
    verbs[sys.argv[1]]()
