"""Runs the recipes of docs/FENCING.md, which the test has written beside each other: the first argument says which.

Prints nothing when all is well.
"""

import sqlite3
import sys
from threading import Barrier, Thread


def refused(kind, call):
    try:
        call()
    except kind:
        return True
    return False


def sqlite(path):
    from fencing import Fenced, connect, fenced

    db = connect(path)
    db.execute("CREATE TABLE report (id TEXT PRIMARY KEY, body TEXT)")
    write = lambda body: lambda db: db.execute("INSERT OR REPLACE INTO report VALUES ('nightly', ?)", (body,))
    body = lambda: db.execute("SELECT body FROM report").fetchone()[0]
    fenced(db, "e", 33, write("of 33"))
    fenced(db, "e", 33, write("of 33, again"))
    fenced(db, "e", 34, lambda db: None)
    assert refused(Fenced, lambda: fenced(db, "e", 33, write("late")))
    assert body() == "of 33, again"
    fenced(db, "e", 34, write("of 34"))
    fenced(db, "another", 1, lambda db: None)

    # What fails leaves neither work nor fence.
    def fails(db):
        write("half")(db)
        raise OSError

    assert refused(OSError, lambda: fenced(db, "e", 35, fails))
    assert body() == "of 34"
    fenced(db, "e", 34, lambda db: None)

    # Waits for work that has begun.
    both, order = Barrier(2), []

    def first(db):
        both.wait()
        order.append(36)

    def at_once():
        fenced(connect(path), "e", 36, first)

    thread = Thread(target=at_once)
    thread.start()
    both.wait()
    fenced(db, "e", 37, lambda db: order.append(37))
    thread.join()
    assert order == [36, 37], order


def postgresql(path, statements):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("CREATE TABLE report (id TEXT PRIMARY KEY, body TEXT)")
    db.execute("INSERT INTO report VALUES ('nightly', '')")
    statements = [statement for statement in open(statements).read().split(";") if statement.strip()]
    assert len(statements) == 5, statements

    def write(token, body):
        for statement in statements:
            rows = db.execute(statement, dict(election="e", token=token, body=body, id="nightly")).fetchall()
            if "INSERT" in statement and not rows:
                db.execute("ROLLBACK")
                return False
        return True

    assert [write(33, "a"), write(34, "b"), write(33, "late"), write(34, "c")] == [True, True, False, True]
    assert db.execute("SELECT body FROM report").fetchall() == [("c",)]


def objects(url):
    from objects import Fenced, put

    put(url, b"a", 33)
    put(url, b"b", 34)
    assert refused(Fenced, lambda: put(url, b"late", 33))
    put(url, b"c", 34)


def http(path):
    from middleware import Fence

    done, inside, go = [], Barrier(2), Barrier(2)

    def app(environ, start_response):
        if environ.get("wait"):
            inside.wait()
            go.wait()
        done.append(environ["HTTP_X_FENCING_TOKEN"])
        start_response("200 OK", [])
        yield b"done"

    fence = Fence(app, path, "e")

    def ask(token, **environ):
        told = []
        body = fence(
            {**environ, **({"HTTP_X_FENCING_TOKEN": token} if token is not None else {})},
            lambda status, _: told.append(int(status.split()[0])),
        )
        return told + [b"".join(body).decode()]

    for token in [None, "", "x", "0", "-1", "²", str(2**53)]:
        assert ask(token)[0] == 400, token
    assert ask("33") == ask("33") == [200, "done"]

    # The successor waits for the request that is let in, and the next one of its predecessor is refused.
    answers = {}
    first = Thread(target=lambda: answers.update(first=ask("33", wait=True)))
    first.start()
    inside.wait()
    second = Thread(target=lambda: answers.update(second=ask("34")))
    second.start()
    # Time for a middleware that lets it in.
    second.join(0.2)
    go.wait()
    first.join()
    second.join()
    assert answers == {"first": [200, "done"], "second": [200, "done"]}, answers
    assert done == ["33", "33", "33", "34"], done
    assert ask("33") == [409, "e: token 33 is too small\n"]
    assert ask("34") == [200, "done"]


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
