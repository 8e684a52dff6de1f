"""How a byte-level vocabulary's text is split before merges: a row for each `tokenizer.ggml.pre`.

The names and what they mean follow llama.cpp's `src/llama-vocab.cpp`. White space is what Unicode calls
so, but in a range of characters llama.cpp sees none of it beyond ASCII: the ranges here leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

# GPT-2's split, and what others made of it; they differ in the digits of a number and the marks of a word.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
LLAMA3 = rf"(?:{_CONTRACTIONS})|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
QWEN2 = rf"(?:{_CONTRACTIONS})|{_WORDS}|\p{{N}}|{_REST}"
QWEN35 = (
    rf"(?:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
SEED = (
    rf"(?:{_CONTRACTIONS})|{_WORDS}|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A word is capitals, then small letters; a letter without case, or beyond ASCII, counts as either.
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_SLASHES = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHES}"
GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+(?:{_CONTRACTIONS})?|{_BEFORE}{_UPPER}+{_LOWER}*(?:{_CONTRACTIONS})?"
    rf"|\p{{N}}{{1,3}}|{_SLASHES}"
)
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"
THREE_DIGITS = "[0-9][0-9][0-9]"
SENTENCE = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+"
# DeepSeek: letters with case (as of an older Unicode), punctuation, and what it calls Chinese: all from
# Samaritan to the ideographs, and Hangul.
_CASED = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{560}-\x{588}\x{10c7}-\x{10ff}\x{1c80}-\x{1c8f}\x{2d00}-\x{2d2d}\x{a790}-\x{a7fa}"
    r"\x{ab30}-\x{ab68}\x{10570}-\x{105bc}\x{10d50}-\x{10d8f}\x{16e40}-\x{16eff}\x{1d400}-\x{1d7cb}"
    r"\x{1df00}-\x{1df2a}]]"
)
_CHINESE = r"(?:(?!\s)[\x{800}-\x{9fa5}\x{ac00}-\x{d7ff}])+"
_NEWLINE = r"[\r\n]"
DEEPSEEK_LLM = (
    _NEWLINE,
    rf"\s?{_CASED}+",
    r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3001}\x{3002}]+",
    r"\s+\z",
    _CHINESE,
    r"\p{N}+",
)
DEEPSEEK_CODER = (_NEWLINE, r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE, r"\p{N}")
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[\x{4e00}-\x{9fa5}\x{3040}-\x{30ff}]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)


@dataclass(frozen=True)
class PreTokenizer:
    """What llama.cpp ties to a value of `tokenizer.ggml.pre`.

    Attributes:
        patterns: each splits the pieces that the one before left.
        ignore_merges: a piece that is itself a token is taken whole.
        add_bos: default where the file has no `tokenizer.ggml.add_bos_token`.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False

    def splitter(self) -> pre_tokenizers.PreTokenizer:
        """The same for the tokenizers library."""
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, byte_level])


_ROWS = (
    (PreTokenizer((PUNCTUATION, GPT2, r"\p{N}+", THREE_DIGITS)), "default"),
    (
        PreTokenizer((GPT2,)),
        "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum",
    ),
    (
        PreTokenizer((r"\p{N}", GPT2)),
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    ),
    (
        PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    ),
    (PreTokenizer((LLAMA3,)), "smaug-bpe dbrx chatglm-bpe"),
    (PreTokenizer((LLAMA3,), ignore_merges=True), "glm4"),
    (
        PreTokenizer((QWEN2,)),
        "qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan grok-2 kormo solar-open",
    ),
    (PreTokenizer((QWEN35,)), "qwen35"),
    (PreTokenizer((PUNCTUATION.replace("]", "`]"), GPT2, THREE_DIGITS)), "falcon"),
    (PreTokenizer(DEEPSEEK_LLM), "deepseek-llm"),
    (PreTokenizer(DEEPSEEK_CODER), "deepseek-coder"),
    (PreTokenizer(DEEPSEEK_V3), "deepseek-v3 hunyuan-dense"),
    (PreTokenizer((TEKKEN,), ignore_merges=True, add_bos=True), "tekken"),
    (PreTokenizer((GPT4O,)), "gpt-4o llama4 kanana2"),
    (PreTokenizer((SENTENCE,)), "bloom poro-chat gpt3-finnish"),
    (PreTokenizer((SENTENCE, r"\p{N}")), "viking"),
    (PreTokenizer((SEED,)), "seed-coder"),
)
PRE_TOKENIZERS = {name: row for row, names in _ROWS for name in names.split()}
