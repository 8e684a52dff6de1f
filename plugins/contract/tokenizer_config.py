"""tokenizer_config.json of a bundle: what a tokenizer.json does not say.

Export writes it and the runtime reads it. Text is always encoded without the tokenizer's own special
tokens (`add_special_tokens=False`); `add_bos_token` says whether a plain prompt is then prefixed with
`bos_token_id`. A rendered chat template already holds every token it wants.
"""

from __future__ import annotations

from pydantic import Field
from pydantic import ValidationError as PydanticValidationError

from kvfold.plugins.contract.errors import BundleError
from kvfold.plugins.contract.fold_plan import describe_errors
from kvfold.plugins.contract.record import Record

FILE_NAME = "tokenizer_config.json"


class TokenizerConfig(Record):
    """The tokenizer's special tokens and chat template.

    Attributes:
        bos_token_id: the token that begins a text; None where the model has none.
        add_bos_token: whether a plain prompt (not a rendered chat) starts with it.
        eos_token_ids: every token that ends a reply, the end of a chat turn included.
        chat_template: jinja2 source that turns messages into text; None for a base model.
        special_tokens: texts the template may name, for example bos_token, eos_token, unk_token.
    """

    bos_token_id: int | None = Field(default=None, ge=0)
    add_bos_token: bool = False
    eos_token_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    special_tokens: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | bytes) -> TokenizerConfig:
        """Read the file's text; raises BundleError that names the wrong key."""
        try:
            return cls.model_validate_json(text)
        except PydanticValidationError as error:
            raise BundleError(describe_errors(FILE_NAME, error)) from error
