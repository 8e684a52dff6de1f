"""The residual stream against a whole forward pass, and its files against the folder for temporary ones."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from kvfold.export.model.decoder import Decoder
from kvfold.export.model.families import config_from_huggingface
from kvfold.export.model.mapped_tensor import map_tensor
from kvfold.export.model.residual_stream import ResidualStream, load_block
from tests.export.tiny_checkpoints import random_model
from tests.tiny_model import dense_logits, tiny_plan


def test_a_stream_is_the_model_layer_by_layer_in_files_without_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to be found, by whatever ends the process, while the stream still works."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = random_model("llama")
    config, weights = config_from_huggingface(model.config.to_dict()), model.state_dict()
    plan = tiny_plan(config, "horizon")
    tokens = torch.randint(1, 97, (2, 40), generator=torch.Generator().manual_seed(0))
    decoder = Decoder.from_weights(config, plan, weights)
    with torch.no_grad():
        stream = ResidualStream.embed(config, plan, weights, tokens)
        assert not list(tmp_path.iterdir())
        for layer in range(config.num_hidden_layers):
            block = load_block(config, plan, weights, layer)
            for rows in stream.batches():
                stream.attend(block, rows)
                stream.advance(block, rows)
        logits = decoder.lm_head(decoder.model.norm(stream.hidden))
        torch.testing.assert_close(logits, dense_logits(decoder, tokens))


@pytest.mark.skipif(sys.platform != "linux", reason="room is reserved on Linux only")
def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, offset: int, length: int) -> None:
        assert length == 2 * 3 * 5
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left on device") as refused:
        map_tensor(tmp_path / "states", (3, 5), torch.float16)
    assert refused.value.filename == str(tmp_path / "states")
