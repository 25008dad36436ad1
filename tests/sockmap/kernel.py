"""bpf(2) as far as `sockmap.py` needs it: maps, programs given as instructions, and attaching them.

Everything that is made here belongs to this process: it goes when the process ends.
"""

import ctypes
import os
import platform
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}[platform.machine()]

MAP_CREATE, MAP_UPDATE, MAP_DELETE, PROG_LOAD, PROG_ATTACH, LINK_CREATE = 0, 2, 3, 5, 8, 28
ARRAY, SOCKMAP, SOCKHASH = 2, 15, 18
SOCK_OPS, SK_SKB, SK_MSG = 13, 14, 16
AT_SOCK_OPS, AT_SK_MSG_VERDICT, AT_SK_SKB_VERDICT = 3, 7, 38
LOOKUP, REDIRECT_MAP, HASH_UPDATE = 1, 60, 70
INGRESS = 1
ACTIVE_ESTABLISHED = 4
ZERO = struct.pack("I", 0)


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes.ljust(144, b"\0"), 144)
    result = LIBC.syscall(BPF, command, buffer, 144)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"bpf command {command}: {os.strerror(error)}")
    return result


def new_map(kind, key_size, value_size, entries):
    return bpf(MAP_CREATE, struct.pack("5I", kind, key_size, value_size, entries, 0))


def write(map_fd, key, value):
    key, value = (ctypes.create_string_buffer(part, len(part)) for part in (key, value))
    bpf(MAP_UPDATE, struct.pack("IIQQQ", map_fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0))


def remove(map_fd, key):
    key = ctypes.create_string_buffer(key, len(key))
    bpf(MAP_DELETE, struct.pack("IIQ", map_fd, 0, ctypes.addressof(key)))


def attach(program, to, kind):
    """To a map."""
    bpf(PROG_ATTACH, struct.pack("4I", to, program, kind, 0))


def link_to_cgroup(program, cgroup, kind):
    """As long as the link's descriptor is open."""
    return bpf(LINK_CREATE, struct.pack("4I", program, cgroup, kind, 0))


# Instructions: operation, destination, source, offset, immediate.
def ins(operation, dst=0, src=0, offset=0, immediate=0):
    return struct.pack("<BBhi", operation, src << 4 | dst, offset, immediate)


def load_map(dst, map_fd):
    return ins(0x18, dst, 1, 0, map_fd) + ins(0)


def move(dst, src):
    return ins(0xBF, dst, src)


def put(dst, value):
    return ins(0xB7, dst, 0, 0, value)


def call(helper):
    return ins(0x85, 0, 0, 0, helper)


PASS = put(0, 1) + ins(0x95)


def load(kind, *instructions):
    code = b"".join(instructions)
    code, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("IIQQ", kind, len(code) // 8, ctypes.addressof(code), ctypes.addressof(licence))
    return bpf(PROG_LOAD, attributes)


def passing(kind):
    """A program that lets everything go its way."""
    return load(kind, PASS)


def redirecting(switch, target):
    """sk_msg: into the receive queue of the socket in `target` while `switch` is set, else by TCP."""
    return load(
        SK_MSG,
        move(6, 1),
        ins(0x62, 10, 0, -4, 0),  # key 0, on the stack
        load_map(1, switch) + move(2, 10) + ins(0x07, 2, 0, 0, -4),
        call(LOOKUP),
        ins(0x15, 0, 0, 8),  # no such slot: pass
        ins(0x61, 1, 0, 0),
        ins(0x15, 1, 0, 6),  # off: pass
        move(1, 6) + load_map(2, target) + put(3, 0) + put(4, INGRESS),
        call(REDIRECT_MAP),
        PASS,
    )


def enrolling(sockhash):
    """sock_ops: puts each socket whose connect has succeeded into `sockhash`, by its port."""
    return load(
        SOCK_OPS,
        move(6, 1) + ins(0x61, 1, 6, 0),
        ins(0x55, 1, 0, 9, ACTIVE_ESTABLISHED),
        ins(0x61, 1, 6, 68) + ins(0x63, 10, 1, -4),  # local_port
        move(1, 6) + load_map(2, sockhash) + move(3, 10) + ins(0x07, 3, 0, 0, -4) + put(4, 0),
        call(HASH_UPDATE),
        PASS,
    )
