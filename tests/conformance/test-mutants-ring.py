#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Servers that break one rule of the access ring: `outboard check` finds them.

The man in the middle puts a ring of his own in place of the server's, and sends it what is in there as messages."""
import fcntl
import json
import os
import pathlib
import select
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parents[1] / "lib")]
import ring
from broken import Closed, Message, NO_REPLY, READ, Unbroken, VERSION, WRITE, broken_server
from case import case, main
from mutants import check, mutant, on_request
from ring import Ring

EINVAL = 22


class RingServer(Unbroken):
    """Keeps all rules, and polls all the time."""

    # ---- What it is made of, for mutants to change

    SIZE, SEALS = ring.SIZE, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

    def file(self):
        fd = os.memfd_create("ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, self.SIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, self.SEALS)
        return fd

    def counts(self, message):
        return message.cmd != VERSION

    def is_ready(self, state, number):
        return state & ~ring.ASKED == ring.before(number) + ring.READY

    def was_taken_back(self, state, number):
        return state == ring.after(number)

    def refuses(self, flags, cmd, count):
        return cmd not in (READ, WRITE) or not 1 <= count <= 8 or flags & 0xF

    def leaves(self, link, number, flags, error, result):
        """What is there when the command is done."""
        if not flags & NO_REPLY:
            link.ring.put(number, ring.ERROR, error)
            link.ring.put(number, ring.RESULT, result)
        link.ring.put(number, ring.DONE, ring.after(number))

    def answers(self, link, asked, reply):
        if asked and not reply.flags & NO_REPLY:
            link.send(link.client, reply)

    def before_message(self, link):
        self.look(link)

    def idle(self, link):
        if not getattr(link, "ring", None):
            return None
        self.look(link)
        return 0

    # ---- How it works

    def publish(self, link):
        link.ring.accepts = link.executed << 1 | ring.POLLS

    def request(self, link, message):
        if getattr(link, "ring", None):
            self.before_message(link)
            link.executed += self.counts(message)
            self.publish(link)
        return message

    def reply(self, link, request, message):
        if request.number is None:
            link.answer = message
            return None
        if message.cmd == VERSION and b'"access_ring"' in message.payload:
            index = json.loads(message.payload[4:-1])["capabilities"]["access_ring"]["fd_index"]
            fds = list(message.fds)
            fds[index] = self.file()
            link.kept.append(fds[index])
            link.number = link.executed = 0
            if os.fstat(fds[index]).st_size >= ring.SIZE:
                link.ring = Ring(fds[index])
                self.publish(link)
            return message.but(fds=fds)
        return message

    def look(self, link):
        while True:
            state = link.ring.state(link.number)
            if self.is_ready(state, link.number):
                if not link.ring.change_state(link.number, state, state + ring.TAKEN - ring.READY):
                    continue
                self.execute(link, link.number)
            elif not self.was_taken_back(state, link.number):
                return
            link.number += 1

    def execute(self, link, number):
        flags, cmd, region, offset, count, data = (
            link.ring.get(number, f)
            for f in (ring.FLAGS, ring.CMD, ring.REGION, ring.OFFSET, ring.COUNT, ring.DATA))
        where = offset.to_bytes(8, "little") + region.to_bytes(4, "little") + count.to_bytes(4, "little")
        payload = where + data[:count] if cmd == WRITE else where
        command = Message(link.ring.get(number, ring.ID), cmd, flags, 0, payload)
        answer = command.refusal() if self.refuses(flags, cmd, count) else self.ask(link, command)
        self.leaves(link, number, flags, answer.error, answer.payload[16:].ljust(8, b"\0")[:8])
        self.free(link, number, answer.but(number=command.number, flags=answer.flags | flags & NO_REPLY))

    def ask(self, link, command):
        """What the real server says to it."""
        number = 0x7fff
        link.send(link.server, command.but(number=number))
        if command.flags & NO_REPLY:
            return command.success()
        link.waiting.append((number, Message(None, command.cmd)))
        link.answer = None
        while not link.answer:
            link.from_server()
        return link.answer

    def free(self, link, number, reply):
        while True:
            state = link.ring.state(number)
            if link.ring.change_state(number, state, ring.after(number)):
                self.answers(link, state & ring.ASKED, reply)
                return


class Sleepy(RingServer):
    """Polls for a moment after a message, then sleeps."""

    def last_look(self, link):
        link.ring.accepts = link.executed << 1
        self.look(link)

    def idle(self, link):
        if not getattr(link, "ring", None):
            return None
        self.publish(link)
        until = time.monotonic() + 60e-6
        while time.monotonic() < until:
            self.look(link)
            if select.select([link.client], [], [], 0)[0]:
                return 0
        self.last_look(link)
        return None


class NeverPolls(RingServer):
    def idle(self, link):
        return None

    def publish(self, link):
        link.ring.accepts = link.executed << 1


def passes(tmp, mutant, least, timeout_ms):
    with broken_server(tmp, "null", mutant) as path:
        status, report = check(path, "ring/*", timeout_ms)
    assert status == 0 and report["summary"]["pass"] >= least, report


@case("unbroken-ring-passes", timeout_s=120)
def _(tmp):
    passes(tmp, RingServer(), 20, 20000)


@case("unbroken-ring-of-a-server-that-sleeps-passes", timeout_s=120)
def _(tmp):
    passes(tmp, Sleepy(), 20, 20000)


@case("ring-that-is-never-polled-is-no-failure", timeout_s=120)
def _(tmp):
    passes(tmp, NeverPolls(), 6, 2000)


# ---- What comes with VERSION


@on_request("R-RING-1", "for-those-who-did-not-ask", "ring/not-asked")
def _(link, m):
    return m.but(payload=m.payload.replace(b'"max_msg_fds":8', b'"max_msg_fds":8,"access_ring":{"supported":true}'))


@on_request("R-RING-1", "more-than-there-is-room-for", "ring/no-room")
def _(link, m):
    return m.but(payload=m.payload.replace(b'fds":1', b'fds":2'))


@on_request("R-CAPS-4", "type-of-access-ring-not-checked", "ring/not-acceptable")
def _(link, m):
    return m.but(payload=m.payload.replace(b'"access_ring":true', b'"access_ring":{}'))


@mutant("R-RING-1", "not-sealed", "ring/comes-along")
class _(RingServer):
    SEALS = fcntl.F_SEAL_SEAL


@mutant("R-RING-1", "can-be-cut", "ring/comes-along")
class _(RingServer):
    SEALS = fcntl.F_SEAL_GROW


@mutant("R-RING-1", "can-grow", "ring/comes-along")
class _(RingServer):
    SEALS = fcntl.F_SEAL_SHRINK


@mutant("R-RING-1", "too-large", "ring/comes-along")
class _(RingServer):
    SIZE = ring.SIZE + 4096


@mutant("R-RING-1", "too-small", "ring/comes-along")
class _(RingServer):
    SIZE = ring.SIZE - 4096


@mutant("R-RING-1", "not-zeroed", "ring/comes-along")
class _(RingServer):
    def file(self):
        fd = super().file()
        os.pwrite(fd, b"\7", 4096 + 200 * 128 + 16)
        return fd


@mutant("R-RING-1", "one-for-all", "ring/another-one")
class _(RingServer):
    first = None

    def file(self):
        self.first = self.first or super().file()
        return os.dup(self.first)


# ---- Order


@mutant("R-RING-3", "posted-ones-not-counted", "ring/behind-the-socket")
class _(RingServer):
    def counts(self, message):
        return message.cmd != VERSION and not message.flags & NO_REPLY


@mutant("R-RING-4", "executes-what-was-taken-back", "ring/taken-back")
class _(RingServer):
    def look(self, link):
        self.link = link
        super().look(link)

    def was_taken_back(self, state, number):
        back = super().was_taken_back(state, number)
        if back:
            self.execute(self.link, number)
        return back


@mutant("R-RING-5", "waits-at-what-was-taken-back", "ring/taken-back")
class _(RingServer):
    def was_taken_back(self, state, number):
        return False


@mutant("R-RING-5", "in-any-order", "ring/in-order")
class _(RingServer):
    def look(self, link):
        super().look(link)
        if self.is_ready(link.ring.state(link.number + 1), link.number + 1):
            self.execute(link, link.number + 1)


@mutant("R-RING-5", "messages-first", "ring/before-the-socket")
class _(RingServer):
    def before_message(self, link):
        pass

    def idle(self, link):
        if getattr(link, "ring", None) and select.select([link.client], [], [], 0.001)[0]:
            return 0
        return super().idle(link)


@mutant("R-RING-5", "entries-used-once", "ring/turns")
class _(RingServer):
    def is_ready(self, state, number):
        return number < ring.ENTRIES and super().is_ready(state, number)


@mutant("R-RING-5", "no-look-before-it-sleeps", "ring/never-lost")
class _(Sleepy):
    def last_look(self, link):
        time.sleep(20e-6)
        link.ring.accepts = link.executed << 1


# ---- Results


@mutant("R-RING-6", "free-without-done", "ring/reads")
class _(RingServer):
    def leaves(self, link, number, flags, error, result):
        pass


@mutant("R-RING-6", "done-without-result", "ring/reads")
class _(RingServer):
    def leaves(self, link, number, flags, error, result):
        super().leaves(link, number, flags, error, bytes(8))


@mutant("R-RING-7", "deaf", "ring/asked")
class _(RingServer):
    def answers(self, link, asked, reply):
        pass


@mutant("R-RING-7", "answers-unasked", "ring/reads")
class _(RingServer):
    def answers(self, link, asked, reply):
        super().answers(link, True, reply)


@mutant("R-RING-7", "answers-twice", "ring/asked")
class _(RingServer):
    def answers(self, link, asked, reply):
        super().answers(link, asked, reply)
        super().answers(link, asked, reply)


@mutant("R-RING-7", "id-of-its-own", "ring/asked")
class _(RingServer):
    def answers(self, link, asked, reply):
        super().answers(link, asked, reply.but(number=reply.number + 1))


@mutant("R-RING-7", "keeps-asked", "ring/asked")
class _(RingServer):
    def free(self, link, number, reply):
        asked = link.ring.state(number) & ring.ASKED
        link.ring.put(number, ring.STATE, ring.after(number) + asked)
        self.answers(link, asked, reply)


@mutant("R-RING-6", "posted-ones-without-done", "ring/posted")
class _(RingServer):
    def leaves(self, link, number, flags, error, result):
        if not flags & NO_REPLY:
            super().leaves(link, number, flags, error, result)


@mutant("R-RING-8", "posted-ones-have-results", "ring/posted")
class _(RingServer):
    def leaves(self, link, number, flags, error, result):
        super().leaves(link, number, 0, error, result)


@mutant("R-RING-8", "nine-bytes", "ring/refused")
class _(RingServer):
    def refuses(self, flags, cmd, count):
        return super().refuses(flags, cmd, min(count, 8))


@mutant("R-RING-8", "no-bytes", "ring/refused")
class _(RingServer):
    def refuses(self, flags, cmd, count):
        return super().refuses(flags, cmd, count or 1)


@mutant("R-RING-8", "any-command", "ring/refused")
class _(RingServer):
    def refuses(self, flags, cmd, count):
        return super().refuses(flags, READ, count)

    def ask(self, link, command):
        return super().ask(link, command) if command.cmd in (READ, WRITE) else command.success()


@mutant("R-RING-8", "undefined-flags", "ring/refused")
class _(RingServer):
    def ask(self, link, command):
        return super().ask(link, command.but(flags=command.flags & NO_REPLY))


# ---- Nonsense


@mutant("R-RING-9", "any-turn", "ring/no-command")
class _(RingServer):
    def is_ready(self, state, number):
        return state & ring.STEPS == ring.READY and state != ring.after(number)


@mutant("R-RING-9", "taken-is-ready", "ring/no-command")
class _(RingServer):
    def is_ready(self, state, number):
        return super().is_ready(state, number) or state == ring.before(number) + ring.TAKEN


@mutant("R-RING-9", "garbage-ends-the-connection", "ring/garbage")
class _(RingServer):
    def look(self, link):
        super().look(link)
        if link.ring.state(link.number) & ring.STEPS == ring.STEPS:
            raise Closed


main()
