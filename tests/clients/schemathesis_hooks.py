"""Where OpenAPI has no words for a rule, keeps schemathesis from blaming the agent for it.

CREDENTIALS_NEEDED=1 says that this agent wants to know who asks.
"""

import os

import schemathesis
from schemathesis import GenerationMode

# A request that keeps to the document, but not to these rules, is rightly refused. What the refusals say:
UNSPEAKABLE = (
    # JSON Schema counts characters; the agent bounds bytes, because it stores them.
    "bytes long: give at most",
    # A token is opaque, and made by the page before.
    "`page_token` is not one that a page of",
    # The document allows every wait that an agent may be configured to allow; the tested agent allows short ones, because
    # the tester waits for each answer.
    "(EA_MAX_WAIT bounds it)",
    # Two parameters of which at most one may be given.
    "given beside `all_kinds`",
    # A parameter that needs another.
    "name the election, too",
)


def is_stream(operation):
    """Whether the answer has no end, which schemathesis would wait for."""
    answer = operation.get("responses", {}).get("200", {})
    return "text/event-stream" in answer.get("content", {})


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Leaves streams out, and says what the document leaves to the configuration: that there is no asking without a
    credential."""
    for item in raw_schema["paths"].values():
        for method in [method for method, it in item.items() if isinstance(it, dict) and is_stream(it)]:
            del item[method]
    if os.environ.get("CREDENTIALS_NEEDED") != "1":
        return
    for item in raw_schema["paths"].values():
        for operation in item.values():
            if isinstance(operation, dict) and "security" in operation:
                operation["security"].remove({})


@schemathesis.hook
def map_case(context, case):
    """Names the leader who resigns once: the document cannot say "in the query or in the body"."""
    resigns = case.operation.method.upper() == "DELETE"
    if resigns and case.meta.generation.mode == GenerationMode.POSITIVE:
        if isinstance(case.body, dict):
            case.query = {}
        else:
            case.query.setdefault("leader", "worker-1")
    return case


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Drops a failure of `positive_data_acceptance` for one of these reasons, and no other failure."""
    if failure.code != "ST202" or response.status_code != 400:
        return True
    return not any(rule in response.json()["detail"] for rule in UNSPEAKABLE)
