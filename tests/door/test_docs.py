"""The documentation and the metrics that every service serves."""

import re

from litestar import Litestar

from door import docs, problems
from tests.door.conftest import ask, bearer


async def test_the_openapi_document_says_who_may_call(app: Litestar) -> None:
    """Generated clients know where a token is needed."""
    schema = (await ask(app, "/openapi.json")).json()
    assert schema["openapi"].startswith("3.1")
    assert schema["paths"]["/for/admin"]["get"]["security"] == [{"bearer": ["admin"]}]
    assert "security" not in schema["paths"]["/healthz"]["get"]
    assert "/docs" not in schema["paths"]


async def test_the_page_runs_nothing_and_loads_nothing(app: Litestar) -> None:
    """Integrators read the documentation behind the strictest policy, offline too."""
    answer = await ask(app, "/docs")
    text = answer.body.decode()
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"] == docs.CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in docs.CONTENT_SECURITY_POLICY
    assert not re.search(r"<script|<link|<img|\son\w+=|style=|https?://", text)
    assert "Role: admin" in text


async def test_every_problem_type_leads_to_its_words(app: Litestar) -> None:
    """`type` of a problem is a link that works."""
    text = (await ask(app, "/docs")).body.decode()
    assert [code for code in problems.CODES if f'id="{code}"' not in text] == []


async def test_metrics_are_for_operators_and_hold_no_id(app: Litestar) -> None:
    """Labels are path templates: no ids of people in them, and no growth with what callers ask for."""
    await ask(app, "/admin/v1/things/alice-metrics", query=b"limit=1")
    await ask(app, "/nowhere/alice-metrics")
    assert (await ask(app, "/metrics")).status == 401
    assert (await ask(app, "/metrics", headers=bearer("admin"))).status == 403
    text = (await ask(app, "/metrics", headers=bearer("ops"))).body.decode()
    assert 'path="/admin/v1/things/{thing}"' in text
    assert "alice-metrics" not in text
