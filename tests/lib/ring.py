# SPDX-License-Identifier: BSD-3-Clause
"""The access ring's memory, as docs/protocol.md lays it out; for servers and clients that break its rules."""
import ctypes
import mmap
import struct

SIZE, ENTRIES, POLLS = 36864, 256, 1
READY, TAKEN, STEPS, ASKED, TURN = 1, 2, 3, 4, 8
# fields of an entry: where, and what
STATE, FLAGS, ID, CMD, REGION, OFFSET, COUNT, DATA = ((0, "I"), (4, "I"), (8, "H"), (10, "H"), (12, "I"), (16, "Q"),
                                                      (24, "I"), (32, "8s"))
DONE, ERROR, RESULT = (64, "I"), (68, "I"), (72, "8s")
swap = ctypes.CDLL("libatomic.so.1").__atomic_compare_exchange_4


def before(number):
    return number // ENTRIES * TURN


def after(number):
    return before(number + ENTRIES)


class Ring:
    def __init__(self, fd):
        self.memory = mmap.mmap(fd, SIZE)

    def word(self, offset):
        return ctypes.c_uint32.from_buffer(self.memory, offset)

    @property
    def accepts(self):
        return self.word(0).value

    @accepts.setter
    def accepts(self, value):
        self.change(0, self.accepts, value)

    def change(self, offset, old, new):
        """In one atomic operation, and behind all that was done before: whether it was old."""
        expected = ctypes.c_uint32(old)
        return bool(swap(ctypes.byref(self.word(offset)), ctypes.byref(expected), ctypes.c_uint32(new), 5, 5))

    @staticmethod
    def entry(number):
        return 4096 + number % ENTRIES * 128

    def get(self, number, field):
        return struct.unpack_from(field[1], self.memory, self.entry(number) + field[0])[0]

    def put(self, number, field, value):
        struct.pack_into(field[1], self.memory, self.entry(number) + field[0], value)

    def state(self, number):
        return self.word(self.entry(number)).value

    def change_state(self, number, old, new):
        return self.change(self.entry(number), old, new)
