"""A job of APScheduler that runs on one of all processes that schedule it.

pip install 'apscheduler<4'; python examples/with_apscheduler.py localhost:8080
"""

import sys
import time

from apscheduler.schedulers.background import BackgroundScheduler

from election_agent_client import SyncAgent, SyncTerm


def schedule(agent: SyncAgent, seconds: float, work: "list[int]") -> BackgroundScheduler:
    """A scheduler whose job puts its token into a list, if this process leads."""

    @agent.leader_only("apscheduler-example", term=5)
    def job(term: SyncTerm) -> None:
        term.check()
        work.append(term.token)

    # Its threads are no daemons' otherwise, and would keep the process.
    scheduler = BackgroundScheduler(daemon=True)
    scheduler.add_job(job, "interval", seconds=seconds, max_instances=1, coalesce=True)
    return scheduler


def main() -> None:
    work: list[int] = []
    with SyncAgent(sys.argv[1]) as agent:
        scheduler = schedule(agent, 0.2, work)
        scheduler.start()
        try:
            until = time.monotonic() + float(sys.argv[2] if len(sys.argv) > 2 else 60)
            printed = 0
            while time.monotonic() < until:
                time.sleep(0.05)
                for token in work[printed:]:
                    print(f"ran with token {token}", flush=True)
                printed = len(work)
        finally:
            # Before the agent is closed, which gives the leadership up when no job runs any more.
            scheduler.shutdown()


if __name__ == "__main__":
    main()
