"""What the model wrote as a .jsonl file that people can read, change, and name as a recipe's `source`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfold.pipeline.texts.prompts import Prompts
from kvfold.pipeline.texts.writer import write_text
from kvfold.plugins.contract.errors import CalibrationError
from kvfold.plugins.contract.write_aside import write_aside

if TYPE_CHECKING:
    from kvfold.export.checkpoint.checkpoint import Checkpoint
    from kvfold.pipeline.recipe.recipe_sections import TextSection
    from kvfold.plugins.contract.progress import Progress


def write_file(section: TextSection, checkpoint: Checkpoint, output: Path, progress: Progress) -> int:
    """Let the model write a text into a .jsonl file, as `write_text` does; returns how many documents it has.

    A document is a conversation or a text. What a sequence breaks off at its end is left out; where the model
    has no token that ends anything, a sequence is one text. What is written so far lies beside the file until
    it is done: a kill loses none of it.

    Raises:
        CalibrationError: no sequence holds a whole reply; or as the writer raises it.
        ExportError, BundleError, KernelError: what the writer raises.
    """
    folder = output.with_name(f"{output.name}.work")
    rows = write_text(section, checkpoint, folder, progress)
    prompts = Prompts(checkpoint.tokenizer, section.seed)
    decode = checkpoint.tokenizer.backend.decode
    documents = [
        document
        for index, row in enumerate(rows.tolist())
        for document in _documents(row, index, prompts, decode)
    ]
    if not documents:
        raise CalibrationError(
            f"in sequences of {rows.shape[1]} tokens the model ended no reply to a prompt; try another seed, "
            "or name a text of your own as the recipe's source"
        )
    lines = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    write_aside(output, lambda path: path.write_text(lines, encoding="utf-8"))
    shutil.rmtree(folder)
    return len(documents)


def _documents(row: list[int], index: int, prompts: Prompts, decode: Any) -> Iterator[dict[str, Any]]:
    """A row cut where its prompts stand: turns that follow each other are one conversation."""
    messages: list[dict[str, str]] = []
    start, turn = 0, 0
    while True:
        prompt = prompts.deal(index, turn)
        start += len(prompts.give(index, turn))
        end = next((place for place in range(start, len(row)) if row[place] in prompts.ends), None)
        if end is None:
            if not prompts.ends:
                yield {"text": prompt.text + decode(row[start:])}
            break
        written = decode(row[start:end])
        if prompt.is_chat:
            messages += [
                {"role": "user", "content": prompt.text},
                {"role": "assistant", "content": written},
            ]
        else:
            if messages:
                yield {"messages": messages}
                messages = []
            yield {"text": prompt.text + written}
        start, turn = end + 1, turn + 1
    if messages:
        yield {"messages": messages}
