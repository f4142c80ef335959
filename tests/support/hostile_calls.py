"""What a child of `lib.core.limits` is asked to do in tests; a lean module, since the child imports it."""

import ctypes
import os
import sys
import time

from lib.core.cli import fail


def give_back(*values):
    return list(values)


def print_much():
    """Write where only the reply belongs, and many times what a pipe holds to the other stream."""
    print("result 666", flush=True)
    os.write(1, b"result 667")
    sys.stderr.write("noise" * 100_000)
    return 668


def take_memory(megabytes):
    return len(bytearray(megabytes << 20))


def make_text(megabytes):
    return "x" * (megabytes << 20)


def sleep_in_native_code():
    ctypes.CDLL(None).sleep(600)  # of a C function neither a Python signal handler nor an exception gets hold


def abort():
    os.abort()


def panic():
    """Fail as a library in Rust does: with an exception that is no `Exception`."""
    raise type("PanicException", (BaseException,), {})("index out of\nbounds")


def refuse():
    fail("no system role", "leave it out", at="here")


def exhaust_recursion():
    return exhaust_recursion()


def give_no_json():
    return {1j}


def tell_process_id(path):
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.replace(path + ".new", path)
    time.sleep(600)
