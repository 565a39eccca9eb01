"""`page_app`: the page for people as an app of the server."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Route

from glm4.server.app_parts import App
from glm4.server.cookies import Cookies
from glm4.server.page import artifacts, documents, session, training, views
from glm4.server.page.operator import operator
from glm4.server.page.state import PageState
from glm4.server.page.static import page_rows
from glm4.server.state import ServerState, find_state


def page_app(cookies: Cookies) -> App:
    """The page: its files, and an API that is its own.

    Args:
        cookies: sessions of browsers, which the server accepts as it accepts keys.
    """
    state = PageState(cookies)

    async def start(app: Starlette) -> None:
        state.warm_up()
        state.watch.start(find_state(app, ServerState))

    async def stop(app: Starlette) -> None:
        await state.watch.stop()
        state.rendering.close()

    return App(
        "page",
        routes=ROUTES,
        pages=page_rows(),
        public=frozenset({"/ui/session", "/ui/login"}),
        state=state,
        start=start,
        stop=stop,
    )


ROUTES = [
    Route("/ui/session", session.session, methods=["GET"]),
    Route("/ui/login", session.login, methods=["POST"]),
    Route("/ui/logout", session.logout, methods=["POST"]),
    Route("/ui/conversations/{conversation_id}", views.conversation, methods=["GET"]),
    Route("/ui/turns/{turn_id}/events", views.follow_turn, methods=["GET"]),
    Route("/ui/artifacts", artifacts.add_artifact, methods=["POST"]),
    Route("/ui/artifacts/{artifact_id}", artifacts.show_artifact, methods=["GET"]),
    Route("/ui/documents/{sha256}", documents.document_page, methods=["GET"]),
    Route("/ui/operator", operator, methods=["GET"]),
    Route("/ui/training/runs", training.runs, methods=["GET"]),
    Route("/ui/training/runs/{name}", training.run, methods=["GET"]),
]
"""Not in /openapi.json: they change with the page."""
