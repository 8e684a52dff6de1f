"""LLM: a bundle, loaded and ready to generate."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.engine.protocol import Engine
from kvfold.runtime.llm.conversation import OnOverflow
from kvfold.runtime.llm.generation import Completion, TextChunk, TextGenerator
from kvfold.runtime.llm.session import Session
from kvfold.runtime.loop.read_logits import read_logits
from kvfold.runtime.memory.budget import kv_cache_bytes
from kvfold.runtime.metrics import Metrics
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.batch_sampler import score_tokens
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.sessions.session_file import SessionFile
from kvfold.runtime.sessions.session_store import SessionStore
from kvfold.runtime.text.chat import encode_chat
from kvfold.runtime.text.tokenizer import BundleTokenizer, Tokenizer

if TYPE_CHECKING:
    from kvfold.plugins.contract.chat_template import Message
    from kvfold.runtime.engine.engine_config import EngineConfig
    from kvfold.runtime.memory.tiers.kv_tier import KvTier

TextOrTokens = str | Sequence[int]
DEFAULT_TARGET = "cpu"


class LLM:
    """Generates text. Several streams and sessions may be open at once, and any thread may use it.

    Whoever waits for a reply runs the engine, for all that wait; a session is one thread's at a time.

    Attributes:
        config: memory and batch sizes.
        generator: what runs the requests, of all streams and sessions.
        tier: below its pages; None where there is none.

    Example:
        llm = LLM.load("bundles/smollm2")
        print(llm.generate("The capital of France is", SamplingParams(max_tokens=8))[0].text)
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        config: RuntimeConfig | None = None,
        tier: KvTier | None = None,
    ) -> None:
        """Over an engine that nobody else uses, and a tier for its pages; `LLM.load` is the usual way."""
        self.config = config or RuntimeConfig()
        self.tier = tier
        self.generator = TextGenerator(engine, tokenizer, self.config, tier)

    @classmethod
    def load(
        cls, bundle: str | Path, config: RuntimeConfig | None = None, target: str = DEFAULT_TARGET
    ) -> LLM:
        """Open one of a bundle's engines.

        Args:
            bundle: the bundle's folder.
            config: memory and batch sizes; by default RuntimeConfig's, or a TensorRT plan's own limits.
            target: the engine: `cpu`, `cuda`, `tensorrt` or `tensorrt-rtx`.

        Raises:
            BundleError: there is no bundle, it is damaged, or it has no engine for the target.
            TargetError: the engine cannot run on this machine.
            KernelError: the kernel library is missing or refused.
            TierError: `config.kv_tier` cannot be used.
            CapacityError: `kv_cache_bytes` is too small to run anything, or more than the GPU has.
        """
        from kvfold.runtime.bundle import TOKENIZER, TOKENIZER_CONFIG, open_bundle
        from kvfold.runtime.engine.engine_files import open_engine
        from kvfold.runtime.engine.load_engine import load_engine
        from kvfold.runtime.memory.open_tier import open_tier

        opened = open_bundle(bundle)
        files = open_engine(opened, target)
        config = config or default_config(files.config)
        budget = kv_cache_bytes(files.plan, files.slab_pages, config, files.config.max_context_length)
        tier = open_tier(files, config)
        engine = load_engine(
            files, budget, config.max_num_batched_tokens, config.max_num_seqs, config.threads
        )
        tokenizer = BundleTokenizer.load(opened.file(TOKENIZER), opened.file(TOKENIZER_CONFIG))
        return cls(engine, tokenizer, config, tier)

    def generate(
        self,
        prompts: TextOrTokens | Sequence[TextOrTokens],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        control_tokens: bool = True,
    ) -> list[Completion]:
        """Complete prompts together.

        A text is raw: where it spells a control token such as `<|im_end|>`, the model reads that token. Texts
        of strangers belong in `chat` or a `session`, or here with `control_tokens=False`.

        Args:
            prompts: a text, token ids, or a list of either.
            params: for all prompts, or one for each; greedy when left out.
            control_tokens: False: what a text spells is plain text.

        Raises:
            RequestError: an empty or too long prompt, a token id out of range, or not one params a prompt.
            CapacityError: a request needs more bytes of pages than `kv_cache_bytes`.
        """
        several = _as_list(prompts)
        each = (
            [params or SamplingParams()] * len(several) if not isinstance(params, Sequence) else list(params)
        )
        if len(each) != len(several):
            raise RequestError(
                f"{len(several)} prompts came with {len(each)} SamplingParams; give one for each"
            )
        return self.generator.run(
            [
                self.generator.prepare(self._prompt(prompt, control_tokens), one)
                for prompt, one in zip(several, each, strict=True)
            ]
        )

    def stream(
        self, prompt: TextOrTokens, params: SamplingParams | None = None, *, control_tokens: bool = True
    ) -> Generator[TextChunk, None, None]:
        """Complete one prompt piece by piece.

        Control tokens and errors are as for `generate`; errors come before the first piece.
        """
        reply = self.generator.prepare(self._prompt(prompt, control_tokens), params or SamplingParams())
        return self.generator.stream(reply)

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """Reply to a conversation of {"role": ..., "content": ...}.

        Control tokens are those that the chat template writes; a message that spells one is plain text.
        A leading system message is cached as shared by other conversations. For turn after turn of
        one conversation, `session` is cheaper.

        Raises:
            RequestError: the model has no chat template, or refuses the messages; else as for `generate`.
        """
        chat = encode_chat(self.generator.tokenizer, messages)
        prompt = Prompt(np.asarray(chat.token_ids, np.int64), chat.shared_length, chat.borders)
        return self.generator.run([self.generator.prepare(prompt, params or SamplingParams())])[0]

    def score(self, prompt: TextOrTokens, *, first: int = 1) -> np.ndarray:
        """How likely the model finds a text: natural log probabilities of its tokens, one by one.

        Args:
            prompt: a text, read as by `generate`, or token ids.
            first: the first token whose score is wanted; earlier ones may come from the cache.

        Returns:
            float64 [L - first] of L tokens.

        Raises:
            RequestError: no token has a score; else as for `generate`.
        """
        ids = self._prompt(prompt, control_tokens=True).token_ids
        if not 0 < first < len(ids):
            raise RequestError(
                f"first is {first} in a text of {len(ids)} tokens; use 1 to {len(ids) - 1}, as nothing comes "
                "before the first token"
            )
        scores = np.empty(len(ids) - 1)
        for start, rows in read_logits(self.generator.loop, ids, first - 1):
            follow = ids[start + 1 : start + 1 + len(rows)]
            found = score_tokens(rows[: len(follow)], follow, 0)
            scores[start : start + len(follow)] = [each.logprob for each in found]
        return scores[first - 1 :]

    def session(
        self,
        system: str | None = None,
        on_overflow: OnOverflow = "error",
        file: SessionFile | None = None,
    ) -> Session:
        """A conversation.

        Args:
            system: its system message; None keeps the one that its file has.
            on_overflow: what happens when it reaches the end of the context (or of a smaller page pool):
                `error` refuses the turn; `drop_oldest` gives up the oldest turns, never the system message,
                until half the context is free again, and says which in `Session.dropped`. A message that is
                too long by itself is refused either way.
            file: what it is kept in, turn by turn, and goes on from (`store`); closed with the session.

        Raises:
            RequestError: on_overflow is neither.
        """
        return Session(self.generator, system, on_overflow, file)

    def store(self, folder: str | Path) -> SessionStore:
        """Sessions that outlive this process: each is a file of the folder, which is made if need be.

        Example:
            with llm.session("Answer briefly.", file=llm.store("sessions").open("ada")) as session:
                session.send("My name is Ada.")
        """
        return SessionStore(folder, self.generator.tokenizer.fingerprint)

    @property
    def metrics(self) -> Metrics:
        """Counters and page usage now."""
        return self.generator.loop.metrics()

    def _prompt(self, prompt: TextOrTokens, control_tokens: bool) -> Prompt:
        if isinstance(prompt, str):
            ids = self.generator.tokenizer.encode(prompt, control_tokens=control_tokens)
            return Prompt(np.asarray(ids, np.int64))
        if not all(isinstance(token, (int, np.integer)) for token in prompt):
            raise RequestError(f"a prompt is {prompt!r:.80}; use a text or a list of token ids")
        try:
            return Prompt(np.asarray(prompt, np.int64))
        except OverflowError as error:
            raise RequestError(
                f"token id {max(prompt, key=abs)} is in no vocabulary; "
                "encode the prompt with this model's tokenizer"
            ) from error


def default_config(facts: EngineConfig) -> RuntimeConfig:
    """RuntimeConfig's own, or a TensorRT plan's limits."""
    if facts.tensorrt is None:
        return RuntimeConfig()
    decode, prefill = facts.tensorrt.decode, facts.tensorrt.prefill
    return RuntimeConfig(
        max_num_batched_tokens=prefill.max_tokens,
        max_num_seqs=min(decode.max_sequences, prefill.max_sequences),
    )


def _as_list(prompts: TextOrTokens | Sequence[TextOrTokens]) -> list[TextOrTokens]:
    """A text or a flat list of token ids is one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    several = [prompt for prompt in prompts if not isinstance(prompt, (int, np.integer))]
    if len(several) == len(prompts):
        return several
    if several:
        raise RequestError(
            "prompts mix token ids and texts; wrap each list of token ids in a list of its own"
        )
    return [[int(token) for token in prompts if isinstance(token, (int, np.integer))]]
