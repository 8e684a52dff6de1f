"""The application of a server: every route over one state, without a model yet."""

from __future__ import annotations

from kvfold.runtime.server.app import Application
from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.observe.health_routes import health_routes
from kvfold.runtime.server.route_table import Routes
from kvfold.runtime.server.routes.api import api_routes
from kvfold.runtime.server.routes.conversations import ConversationLimits
from kvfold.runtime.server.routes.shelf import check_state_folder
from kvfold.runtime.server.start.server_settings import ServerSettings
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.ui.ui_routes import ui_routes


def make_application(
    model_name: str, settings: ServerSettings, relay_key: str | None = None
) -> tuple[Application, ServerState]:
    """What `run_server` serves.

    Args:
        model_name: what clients call the model.
        settings: of the server.
        relay_key: what a relay in front of several servers proves itself by.

    Raises:
        RequestError: the file of keys cannot be read, or the state folder is none of this user's.
    """
    check_state_folder(settings.state_dir)
    state = ServerState(model_name, Gate(settings.keys, relay_key), stall_seconds=settings.stall_seconds)
    kept = ConversationLimits(
        settings.max_sessions, settings.max_sessions, settings.session_seconds, settings.state_dir
    )
    return Application(Routes([*api_routes(state, kept), *health_routes(state), *ui_routes()]), state), state
