# SPDX-License-Identifier: BSD-3-Clause
"""Makes another process call the kernel, as one that was taken over would."""
import contextlib
import ctypes
import os
import pathlib
import platform
import signal

from case import skip

PTRACE_SINGLESTEP, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_ATTACH, PTRACE_DETACH = 9, 12, 13, 16, 17
REGISTERS = ("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base "
             "ds es fs gs").split()
ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
WALL = 0x40000000  # threads, too
libc = ctypes.CDLL(None, use_errno=True)


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in REGISTERS]


class Ended(Exception):
    """The process did not survive it."""

    def __init__(self, status):
        super().__init__(f"status {status:#x}")
        self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


def ptrace(request, pid, data=None):
    if libc.ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request}: {os.strerror(ctypes.get_errno())}")


def wait(pid):
    _, status = os.waitpid(pid, WALL)
    if not os.WIFSTOPPED(status):
        raise Ended(status)


@contextlib.contextmanager
def stopped(tid):
    ptrace(PTRACE_ATTACH, tid)
    wait(tid)
    before = Registers()
    ptrace(PTRACE_GETREGS, tid, ctypes.byref(before))
    yield before
    ptrace(PTRACE_SETREGS, tid, ctypes.byref(before))
    ptrace(PTRACE_DETACH, tid)


def call(tid, number, *arguments):
    """The thread, which waits in a system call, makes this one; what it returns. bytes go to its stack. Ended: it
    died of it."""
    if platform.machine() != "x86_64":
        skip("only for x86-64")
    with stopped(tid) as before:
        there = Registers.from_buffer_copy(before)
        place = before.rsp - 4096
        for register, argument in zip(ARGUMENTS, arguments):
            if isinstance(argument, bytes):
                with open(f"/proc/{tid}/mem", "r+b", buffering=0) as memory:
                    memory.seek(place)
                    memory.write(argument + b"\0")
                argument, place = place, place + 512
            setattr(there, register, argument % (1 << 64))
        there.rip -= 2  # back to the instruction `syscall`
        there.rax, there.orig_rax = number, (1 << 64) - 1
        ptrace(PTRACE_SETREGS, tid, ctypes.byref(there))
        ptrace(PTRACE_SINGLESTEP, tid)
        wait(tid)
        ptrace(PTRACE_GETREGS, tid, ctypes.byref(there))
        return ctypes.c_longlong(there.rax).value


def threads(pid):
    return sorted(int(task.name) for task in pathlib.Path(f"/proc/{pid}/task").iterdir())


def dies_of(tid, number, *arguments):
    """The signal that this call ends the process with; None: it lives."""
    try:
        call(tid, number, *arguments)
    except Ended as end:
        return end.signal and signal.Signals(end.signal)
    return None
