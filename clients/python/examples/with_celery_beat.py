"""Celery beat on several hosts, of which one sends the tasks.

Two schedulers would send each task twice. This one sends while it leads, and waits otherwise; the fencing token goes
with each task, for whatever stores its work.

pip install celery; celery -A with_celery_beat beat --scheduler with_celery_beat:LeadingScheduler
"""

import logging
import os
from typing import Any, Optional

from celery import Celery
from celery.beat import PersistentScheduler

from election_agent_client import ElectionAgentError, SyncAgent, SyncLead, SyncTerm

log = logging.getLogger(__name__)

app = Celery("example", broker=os.environ.get("CELERY_BROKER", "filesystem://"))
folder = os.environ.get("CELERY_FOLDER", "/tmp/celery-example")
app.conf.broker_transport_options = {
    "data_folder_in": f"{folder}/queue",
    "data_folder_out": f"{folder}/queue",
    "control_folder": f"{folder}/control",
}
app.conf.beat_schedule = {"report": {"task": "example.report", "schedule": 0.2}}


@app.task(name="example.report")  # type: ignore[untyped-decorator, unused-ignore]
def report() -> None:
    token = report.request.headers["fencing-token"]
    log.info("a report of the leader with token %s", token)


class LeadingScheduler(PersistentScheduler):  # type: ignore[misc, unused-ignore]
    """Sends tasks while it leads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._agent = SyncAgent(os.environ.get("ELECTION_AGENT_URL", "localhost:8080"))
        self._lead: Optional[SyncLead] = None
        self._term: Optional[SyncTerm] = None
        super().__init__(*args, **kwargs)

    def _leads(self) -> bool:
        if self._term is not None and not self._term.is_lost:
            return True
        self._give_up()
        lead = self._agent.lead("celery-beat", term=10, wait=0)
        try:
            self._term = lead.__enter__()
        except ElectionAgentError as error:
            log.debug("waits: %s", error)
            return False
        self._lead = lead
        log.info("leads with token %d", self._term.token)
        return True

    def _give_up(self) -> None:
        lead, self._lead, self._term = self._lead, None, None
        if lead is not None:
            try:
                lead.__exit__(None, None, None)
            except ElectionAgentError as error:
                log.warning("led no longer: %s", error)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        # A leader looks at its term each time; who waits asks every second.
        return min(1.0, super().tick(*args, **kwargs)) if self._leads() else 1.0

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        assert self._term is not None
        # A tick may have taken long.
        self._term.check()
        entry.options["headers"] = {"fencing-token": self._term.token}
        return super().apply_async(entry, *args, **kwargs)

    def close(self) -> None:
        self._give_up()
        self._agent.close()
        super().close()
