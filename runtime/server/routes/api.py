"""The routes of all APIs, as lines of the application's table."""

from __future__ import annotations

from kvfold.runtime.server.route_table import Route
from kvfold.runtime.server.routes.chat_completions import ChatCompletions
from kvfold.runtime.server.routes.completions import Completions
from kvfold.runtime.server.routes.conversations import ConversationLimits
from kvfold.runtime.server.routes.messages import Messages
from kvfold.runtime.server.routes.models import get_model, list_models
from kvfold.runtime.server.routes.operations import Operations
from kvfold.runtime.server.routes.responses import Responses
from kvfold.runtime.server.routes.shared import Shared
from kvfold.runtime.server.routes.tokenizing import Tokenizing
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.wire.message_reply import message_error


def api_routes(state: ServerState, limits: ConversationLimits | None = None) -> list[Route]:
    """All routes that need the model; they share one store of sessions and responses."""
    limits = limits or ConversationLimits()
    shared = Shared(state, limits)
    responses = Responses(shared, limits)
    tokenizing, operations, messages = Tokenizing(shared), Operations(shared), Messages(shared)
    return [
        Route("POST", "/v1/chat/completions", ChatCompletions(shared).create),
        Route("POST", "/v1/completions", Completions(shared).create),
        Route("POST", "/v1/responses", responses.create),
        Route("GET", "/v1/responses/{id}", responses.get),
        Route("DELETE", "/v1/responses/{id}", responses.delete),
        Route("POST", "/v1/responses/{id}/cancel", responses.cancel),
        Route("POST", "/v1/messages", messages.create, error_body=message_error),
        Route("POST", "/v1/messages/count_tokens", messages.count_tokens, error_body=message_error),
        Route("GET", "/v1/models", list_models),
        Route("GET", "/v1/models/{id}", get_model),
        Route("POST", "/tokenize", tokenizing.tokenize),
        Route("POST", "/detokenize", tokenizing.detokenize),
        Route("GET", "/v1/kvfold/requests", operations.list_requests),
        Route("DELETE", "/v1/kvfold/requests/{id}", operations.cancel_request),
        Route("POST", "/v1/kvfold/sessions", operations.create_session),
        Route("GET", "/v1/kvfold/sessions", operations.list_sessions),
        Route("GET", "/v1/kvfold/sessions/{id}", operations.get_session),
        Route("DELETE", "/v1/kvfold/sessions/{id}", operations.delete_session),
    ]
