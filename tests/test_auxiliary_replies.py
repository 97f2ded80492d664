"""Replies come in order, each is on disk as soon as it is accepted, and what is on disk is not asked again."""

import errno
import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from liftlab.auxiliary.replies import Reply, ReplyCache, Request, ask
from liftlab.records import WriteError


class Scripted:
    """A generator that replies in a given order; "no" is a failure. Notes what it was asked, and its closing."""

    def __init__(self, texts=None, order=None, name="scripted"):
        self.texts, self.order, self.name = texts or {}, order or (lambda jobs: jobs), name
        self.asked, self.closed = [], False

    def replies(self, requests, read):
        try:
            for (index, request), reader in self.order(list(zip(requests, read, strict=True))):
                said = request.messages[-1][1]
                self.asked.append(said)
                yield self.reply(index, self.texts.get(said, f"{said}!"), reader)
        finally:
            self.closed = True

    def reply(self, index, text, reader):
        try:
            return Reply(index, text, reader(text), attempts=1)
        except ValueError as error:
            return Reply(index, text, None, str(error), 1)


def requests(*texts, **settings):
    return [Request((("user", text),), 8, **settings) for text in texts]


def upper(text):
    if text == "no":
        raise ValueError("no is no reply")
    return text.upper()


def shuffled(jobs):
    random.Random(0).shuffle(jobs)
    return jobs


def test_replies_keep_the_order_of_the_requests_whatever_order_they_come_in():
    texts = [f"q{i}" for i in range(50)]
    replies = list(ask(requests(*texts), upper, Scripted(order=shuffled)))
    assert [reply.index for reply in replies] == list(range(50))
    assert [reply.value for reply in replies] == [f"Q{i}!" for i in range(50)]


def test_a_reply_is_given_as_soon_as_it_and_all_before_it_are_there():
    generator = Scripted(order=lambda jobs: [jobs[1], jobs[0], jobs[2]])
    replies = ask(requests("a", "b", "c"), upper, generator)
    assert next(replies).text == "a!" and generator.asked == ["b", "a"]
    assert next(replies).text == "b!" and generator.asked == ["b", "a"]


def test_each_request_has_its_own_reader():
    replies = ask(requests("a", "b"), [str.upper, len], Scripted())
    assert [reply.value for reply in replies] == ["A!", 2]
    with pytest.raises(ValueError, match="1 readers for 2 requests"):
        ask(requests("a", "b"), [len], Scripted())


def test_what_the_cache_holds_is_not_asked_and_a_failure_is_asked_again(tmp_path):
    texts = ["a", "b", "c"]
    first = list(ask(requests(*texts), upper, Scripted({"b": "no"}), ReplyCache(tmp_path, "doc")))
    assert [(reply.failure, reply.value) for reply in first] == [("", "A!"), ("no is no reply", None), ("", "C!")]
    again = Scripted()
    second = list(ask(requests(*texts), upper, again, ReplyCache(tmp_path, "doc")))
    assert again.asked == ["b"] and [reply.value for reply in second] == ["A!", "B!", "C!"]
    assert [reply.attempts for reply in second] == [0, 1, 0]
    third = Scripted()
    assert list(ask(requests(*texts), upper, third, ReplyCache(tmp_path, "doc")))[1].text == "b!"
    assert third.asked == [] and not third.closed  # not even called


def test_a_kept_reply_that_its_reader_now_refuses_is_asked_again_and_replaced(tmp_path):
    def short(text):
        if len(text) > 2:
            raise ValueError("too long")
        return text

    list(ask(requests("a"), upper, Scripted({"a": "long"}), ReplyCache(tmp_path, "doc")))
    (reply,) = ask(requests("a"), short, Scripted(), ReplyCache(tmp_path, "doc"))
    assert (reply.value, reply.attempts) == ("a!", 1)
    (reply,) = ask(requests("a"), short, Scripted(), ReplyCache(tmp_path, "doc"))
    assert (reply.value, reply.attempts) == ("a!", 0)


def test_the_key_holds_the_document_the_generator_and_the_whole_request(tmp_path):
    base = {"messages": (("user", "a"),), "reply_tokens": 8}
    changes = [{}, {"messages": (("system", "a"),)}, {"messages": (("user", "b"),)}, {"reply_tokens": 9}, {"seed": 1},
               {"schema": {"type": "object"}}, {"opening": "{"}, {"temperature": 1.0}]  # fmt: skip
    keys = [
        ReplyCache(tmp_path, document).key(name, Request(**(base | change)))
        for document, name, change in itertools.product(("doc", "dok"), ("m", "n"), changes)
    ]
    assert len(set(keys)) == len(keys) == 32
    assert keys[0] == ReplyCache(tmp_path / "elsewhere", "doc").key("m", Request(**base))


def test_equal_requests_are_sent_once_and_counted_once():
    generator = Scripted({"b": "no"})
    replies = list(ask(requests("a", "b", "a", "b", "a"), upper, generator))
    assert generator.asked == ["a", "b"]
    assert [(reply.index, reply.value, bool(reply.failure)) for reply in replies] == [
        (0, "A!", False), (1, None, True), (2, "A!", False), (3, None, True), (4, "A!", False)
    ]  # fmt: skip
    assert [reply.attempts for reply in replies] == [1, 1, 0, 0, 0]


def test_equal_requests_with_two_readers_need_a_reply_that_both_can_read():
    def refuse(text):
        raise ValueError("never")

    good = list(ask(requests("a", "a"), [len, str.upper], Scripted()))
    assert [reply.value for reply in good] == [2, "A!"]
    assert [reply.failure for reply in ask(requests("a", "a"), [len, refuse], Scripted())] == ["never", "never"]


def test_closing_early_closes_the_generator_and_keeps_what_was_accepted(tmp_path):
    class Held(Scripted):
        def replies(self, requests, read):
            self.running = super().replies(requests, read)  # does not end by being forgotten
            return self.running

    generator = Held(order=lambda jobs: jobs[::-1])
    replies = ask(requests("a", "b", "c"), upper, generator, ReplyCache(tmp_path, "doc"))
    assert next(replies).text == "a!" and not generator.closed
    replies.close()
    assert generator.closed
    again = Scripted()
    assert len(list(ask(requests("a", "b", "c"), upper, again, ReplyCache(tmp_path, "doc")))) == 3
    assert again.asked == []


def test_a_reply_is_on_disk_when_it_is_accepted_not_when_it_is_consumed(tmp_path):
    cache = ReplyCache(tmp_path, "doc")
    generator = Scripted(order=lambda jobs: jobs[::-1])
    replies = ask(requests("a", "b"), lambda text: (text, cache.path.exists() and cache.path.read_bytes()), generator,
                  cache)  # fmt: skip
    assert next(replies).value[1].count(b"\n") == 1  # b's line is there while a is being read


@pytest.mark.parametrize("text", ["\ud800", "\udfff half", "\x00\r\n\u2028\u2029\x85", "😀 naïve ｱ", "é" * 2000, '"\\'])
def test_any_text_survives_the_cache(tmp_path, text):
    list(ask(requests(text), str, Scripted({text: text}), ReplyCache(tmp_path, text)))
    again = Scripted()
    (reply,) = ask(requests(text), str, again, ReplyCache(tmp_path, text))
    assert reply.text == reply.value == text and again.asked == []


def kept(folder, count=3):
    texts = [f"q{i}" for i in range(count)]
    cache = ReplyCache(folder, "doc")
    list(ask(requests(*texts), str, Scripted(), cache))
    return cache.path, texts


def test_a_file_cut_anywhere_loses_the_replies_that_are_not_whole_and_no_other(tmp_path):
    path, texts = kept(tmp_path)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = Scripted()
        assert len(list(ask(requests(*texts), str, again, ReplyCache(tmp_path, "doc")))) == 3
        assert again.asked == texts[whole[:cut].count(b"\n") :]
        assert path.read_bytes() == whole  # repaired: the tail is gone, the rest was added again


@pytest.mark.parametrize("tail", [b"\x00\x00\r\x00", b'{"key": 1}\n', b"[]\n", b"\xff\xfe\n", b"\n"])
def test_a_damaged_last_line_is_dropped(tmp_path, tail):
    path, texts = kept(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert len(list(ask(requests(*texts), str, Scripted(), ReplyCache(tmp_path, "doc")))) == 3
    assert path.read_bytes() == whole + tail  # it is no obstacle to reading, and another process may be writing it
    (reply,) = ask(requests("new"), str, Scripted(), ReplyCache(tmp_path, "doc"))
    assert path.read_bytes().startswith(whole + b'{"key": ') and path.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": "x"}', b"\xff"])
def test_a_damaged_line_between_others_is_an_error_with_its_place(tmp_path, damage):
    path, _ = kept(tmp_path)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]))
    with pytest.raises(ValueError, match=rf"{path.name}:2 is damaged"):
        ReplyCache(tmp_path, "doc")


def test_a_line_says_how_many_replies_were_refused_before_it(tmp_path):
    class Twice(Scripted):
        def reply(self, index, text, reader):
            super().reply(index, "no", reader)
            return super().reply(index, text, reader)

    cache = ReplyCache(tmp_path, "doc")
    list(ask(requests("a"), upper, Twice(), cache))
    (line,) = cache.path.read_text("ascii").splitlines()
    assert json.loads(line) == {"key": cache.key("scripted", requests("a")[0]), "text": "a!", "refused": 1}


def test_a_generator_that_loses_a_request_is_found_out():
    with pytest.raises(RuntimeError, match="request 1 got no reply"):
        list(ask(requests("a", "b"), str, Scripted(order=lambda jobs: jobs[:1])))


def test_an_error_of_the_reader_that_is_no_refusal_stops_the_run():
    def broken(text):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(ask(requests("a"), broken, Scripted()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"messages": ()}, "at least one message"),
        ({"messages": (("robot", "a"),)}, "'robot'"),
        ({"reply_tokens": 0}, "reply_tokens = 0: must be at least 1"),
        ({"temperature": float("nan")}, "temperature = nan: must be in 0..2"),
    ],
)
def test_mistakes_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        Request(**({"messages": (("user", "a"),), "reply_tokens": 8} | settings))


def test_no_requests_have_no_replies():
    assert list(ask([], str, Scripted())) == []


ASKING = """
import os, sys, time
from pathlib import Path
from liftlab.auxiliary.replies import Reply, ReplyCache, Request, ask

class Slow:
    name = "slow"
    def replies(self, requests, read):
        for (index, request), reader in zip(requests, read, strict=True):
            (Path(sys.argv[2]) / f"{request.messages[0][1]}.{os.getpid()}").touch()
            time.sleep(0.02)
            yield Reply(index, "said", reader("said"), attempts=1)

requests = [Request((("user", f"q{i}"),), 8) for i in range(int(sys.argv[3]))]
print([reply.text for reply in ask(requests, str, Slow(), ReplyCache(sys.argv[1], "doc"))])
"""


def asking(tmp_path, count):
    (tmp_path / "asked").mkdir(exist_ok=True)
    words = [sys.executable, "-c", ASKING, str(tmp_path / "replies"), str(tmp_path / "asked"), str(count)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def asked_by(tmp_path):
    return [path.name.split(".") for path in (tmp_path / "asked").iterdir()]


def test_processes_that_ask_about_one_document_send_each_request_once(tmp_path):
    """They wait for each other, say so, and leave nothing but the replies."""
    running = [asking(tmp_path, count) for count in (20, 20, 30)]
    said = [process.communicate(timeout=60) for process in running]
    assert [out.count("said") for out, _ in said] == [20, 20, 30]
    assert sorted(request for request, _ in asked_by(tmp_path)) == sorted(f"q{i}" for i in range(30))
    (kept,) = (tmp_path / "replies").iterdir()
    assert kept.read_bytes().count(b"\n") == 30
    assert all(err in ("", f"liftlab: waiting for another process, which asks about the same document "
                           f"({kept.name[:12]}...)\n") for _, err in said)  # fmt: skip


def test_a_killed_process_s_replies_are_kept_and_the_one_that_waits_goes_on(tmp_path):
    killed = asking(tmp_path, 30)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "asked").iterdir())) < 5:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    waiting = asking(tmp_path, 30)
    time.sleep(0.1)
    killed.kill()
    killed.communicate()
    out, _ = waiting.communicate(timeout=60)
    assert out.count("said") == 30
    counts = Counter(request for request, _ in asked_by(tmp_path))
    assert len(counts) == 30 and counts.total() <= 31  # the one that it was killed in is asked again


def test_a_disk_without_room_is_told_and_leaves_no_part_of_a_reply(tmp_path, monkeypatch):
    path, texts = kept(tmp_path)
    whole = path.read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(WriteError, match=f"cannot write {path} \\(No space left on device\\): free some space"):
            list(ask(requests("new"), str, Scripted(), ReplyCache(tmp_path, "doc")))
    assert path.read_bytes() == whole
    again = Scripted()
    list(ask(requests(*texts, "new"), str, again, ReplyCache(tmp_path, "doc")))
    assert again.asked == ["new"]


def test_what_is_kept_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    """Known replies need no lock, so that a folder that is read-only will do."""
    _, texts = kept(tmp_path)
    monkeypatch.setattr("liftlab.locks.held", lambda *_, **__: pytest.fail("locked"))
    assert len(list(ask(requests(*texts), str, Scripted(), ReplyCache(tmp_path, "doc")))) == 3
