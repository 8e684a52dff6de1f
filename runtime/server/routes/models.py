"""GET /v1/models and /v1/models/{id}: the one model that is served."""

from __future__ import annotations

from typing import Any

from kvfold.runtime.server.http import Request, Response
from kvfold.runtime.server.routes.begin import check_model
from kvfold.runtime.server.state import ServerState


async def list_models(request: Request, state: ServerState) -> Response:
    """All models."""
    return Response.json({"object": "list", "data": [_model(state)]})


async def get_model(request: Request, state: ServerState) -> Response:
    """One of them; raises HttpError 404 for another name."""
    check_model(request.path_params["id"], state)
    return Response.json(_model(state))


def _model(state: ServerState) -> dict[str, Any]:
    """OpenAI's fields, and vLLM's max_model_len."""
    return {
        "id": state.model_name,
        "object": "model",
        "created": int(state.started),
        "owned_by": "kvfold",
        "max_model_len": state.llm.max_length,
    }
