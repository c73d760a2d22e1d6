"""The protocol of claims in object stores: every order of several workers' requests, on the very steps that run."""

import contextlib
import functools
import json

import pytest

from bigmodel.errors import Busy
from bigmodel.run import claims, objects

ROWS = "metrics.jsonl"


def life(who, holder):
    """One worker's requests: it takes the run, writes rows, saves, finishes."""
    yield from holder.take()
    if not holder.value.get("result"):
        yield from holder.rewrite(ROWS, lambda there: who.encode())
        yield from holder.write(ROWS, who.encode() * 2)
        yield from holder.publish(5, keep=2)
        yield from holder.finish({"by": who, "token": holder.token})


@functools.cache
def after(who, replies):
    """(the next request, the token held) of a worker that got these replies; generators can't be copied, so it is run
    again. The request is None once it has ended."""
    holder = claims.Holder(who)
    holder.value["nonce"] = who
    steps = life(who, holder)
    request = None
    with contextlib.suppress(StopIteration, Busy):
        request = next(steps)
        for reply in replies:
            request = steps.send(reply)
        return request, holder.value.get("token", 0)
    return None, 0


def answers(request, there, version, lost):
    """(reply, what the object becomes, lost replies left) of each way in which the store may answer."""
    kind, _, *args = request
    if kind == "read":
        return [(there, there, lost)]
    if kind == "age":  # any clock, any silence
        return [(age, there, lost) for age in (0.0, 2 * claims.LEASE)]
    content, wanted = args
    if there[1] != wanted:
        return [(None, there, lost)]
    found = [(version, (content, version), lost)]
    if lost:  # written, the reply lost, and asked for again
        found.append((None, (content, version), lost - 1))
    return found


def explore(workers, lost):
    """Goes through every reachable state; returns (states, ways in which a result was written)."""
    nothing = (None, objects.ABSENT)
    seen, finished = set(), 0
    stack = [(tuple(() for _ in workers), ((claims.NAME, nothing), (ROWS, nothing), (claims.RESULT, nothing)), 1, lost)]
    while stack:
        state = stack.pop()
        if state in seen:
            continue
        seen.add(state)
        histories, store, version, left = state
        before = dict(store)
        for i, who in enumerate(workers):
            request, token = after(who, histories[i])
            if request is None:
                continue
            name = request[1]
            for reply, there, remaining in answers(request, before[name], version, left):
                now = {**before, name: there}
                if there is not before[name]:
                    check(name, token, before, now)
                    finished += name == claims.RESULT
                further = (*histories[:i], (*histories[i], reply), *histories[i + 1 :])
                stack.append((further, tuple(now.items()), version + (there is not before[name]), remaining))
    return len(seen), finished


def token_of(name, content):
    """The token under which an object was last written; 0: never."""
    if content is None:
        return 0
    return claims.parse(content)["token"] if name == claims.NAME else len(content) - len(content.rstrip(b"\n"))


def check(name, token, before, now):
    """No object goes back to an earlier token, whoever was superseded; a result is written once, and by its claim."""
    old, claim = claims.parse(before[claims.NAME][0]), claims.parse(now[claims.NAME][0])
    if name == claims.RESULT:
        result = json.loads(now[name][0])
        assert before[name][0] is None
        assert {k: result[k] for k in ("by", "token")} == claim["result"] and claim["result"]["token"] == claim["token"]
        return
    assert token_of(name, now[name][0]) >= token_of(name, before[name][0])
    if name == ROWS:
        assert token_of(name, now[name][0]) == token
    assert not old.get("result") or old == claim  # a finished run is taken by nobody
    assert all(saved[0] <= claim["token"] for saved in claim.get("saved", []))


@pytest.mark.parametrize(("workers", "lost"), [("ab", 1), pytest.param("abc", 0, marks=pytest.mark.slow)])
def test_no_order_of_requests_lets_a_superseded_worker_write(workers, lost):
    states, finished = explore(tuple(workers), lost)
    print(states, finished)
    assert states > 100 and finished
