"""Writes a report that no former leader can overwrite: SQLite compares fencing tokens.

python examples/fencing.py localhost:8080 reports.db
"""

import sqlite3
import sys
from typing import Callable

from election_agent_client import SyncAgent


class Fenced(Exception):
    """Another leader was here: stop."""


def connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=10, isolation_level=None)
    db.execute("CREATE TABLE IF NOT EXISTS fence (election TEXT PRIMARY KEY, token INTEGER NOT NULL)")
    db.execute("CREATE TABLE IF NOT EXISTS report (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
    return db


def fenced(db: sqlite3.Connection, election: str, token: int, work: Callable[[sqlite3.Connection], object]) -> None:
    """Works in one transaction with the comparison. Raises `Fenced` when the token is too small."""
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("INSERT OR IGNORE INTO fence (election, token) VALUES (?, 0)", (election,))
        raised = db.execute("UPDATE fence SET token = ? WHERE election = ? AND token <= ?", (token, election, token))
        if raised.rowcount == 0:
            raise Fenced(f"{election}: token {token} is too small")
        work(db)
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def report(db: sqlite3.Connection, token: int, body: str) -> None:
    fenced(db, "nightly", token, lambda db: db.execute("INSERT OR REPLACE INTO report VALUES (1, ?)", (body,)))


def main() -> None:
    endpoints, path = sys.argv[1:3]
    with SyncAgent(endpoints) as agent, agent.lead("nightly", wait=10) as term:
        # A new leader raises the fence before it reads what its work builds on.
        db = connect(path)
        fenced(db, "nightly", term.token, lambda db: None)
        term.check()
        report(db, term.token, f"written with {term.token}")
        db.close()
        print(f"written with {term.token}")


if __name__ == "__main__":
    main()
