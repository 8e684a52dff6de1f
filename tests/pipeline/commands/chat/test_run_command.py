"""`kvfold run` and `kvfold demo` of a real, tiny bundle: in a pseudo-terminal, and through pipes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.commands.chat.pseudo_terminal import CTRL_D, ENTER, PseudoTerminal

CLI = "kvfold.pipeline.cli"
COST = r"(\d+) of (\d+) prompt tokens from the cache, (\d+) computed, first token after"


def pipe(environment: dict[str, str], *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line with a text on its standard input."""
    command = [sys.executable, "-m", CLI, *arguments]
    return subprocess.run(
        command, env=environment, input=said, capture_output=True, text=True, check=False, timeout=300
    )


def test_a_chat_says_what_it_is_and_what_the_cache_does(
    start: Callable[..., PseudoTerminal], small_bundle: Path
) -> None:
    chat = start(CLI, "run", str(small_bundle), "--system", "tab", "--max-tokens", "5")
    chat.wait_for_prompt()
    assert chat.words.startswith(
        "small (llama): 4 layers keep 3 KV banks in int8, 2 global and 1 with windows of"
    )
    assert re.search(r"Context [\d,]+ tokens: .* KV cache, unfolded .*/help lists the commands", chat.words)
    for text in ("a cab", "a folded tab"):
        chat.type(text + ENTER)
        chat.wait_for_prompt()
    first, second = (tuple(map(int, cost)) for cost in re.findall(COST, chat.words))
    assert first[0] == 0 and first[1] == first[2]
    assert second[0] > first[1], "the first turn comes from the cache"
    assert second[1] == second[0] + second[2]
    assert "The reply was cut after 5 tokens; --max-tokens allows more." in chat.words
    chat.type("/stats" + ENTER)
    chat.wait_for_prompt()
    assert re.search(rf"of these, from the cache +{second[0]} ", chat.text)
    chat.type(CTRL_D)
    assert chat.wait_for_end() == 0


def test_a_chat_needs_no_torch(environment: dict[str, str], small_bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import kvfold.pipeline.chat.run_chat;"
        "from kvfold.pipeline.chat.chat_model import ChatModel;"
        f"ChatModel.read(Path({str(small_bundle)!r}), 256);"
        "sys.exit(bool({'torch', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_piped_lines_are_answered_one_by_one(environment: dict[str, str], small_bundle: Path) -> None:
    options = ("--max-tokens", "4", "--kv-host-bytes", "1MiB")
    result = pipe(environment, "run", str(small_bundle), *options, said="a cab\n\n  \n/stats\n")
    assert (result.returncode, result.stderr) == (0, "")
    assert len(re.findall(COST, result.stdout)) == 2, "a line that begins with a slash is one too"
    assert "\x1b" not in result.stdout and not re.search("^>", result.stdout, re.M)
    assert "Context" not in result.stdout
    for line in result.stdout.splitlines():
        assert "prompt tokens" not in line or re.search(COST + r" \d+ ms", line), "a cost is one line"


def test_a_piped_line_that_is_too_long_is_an_error(environment: dict[str, str], small_bundle: Path) -> None:
    result = pipe(
        environment, "run", str(small_bundle), "--max-tokens", "4", said="a cab\n" + "a cab " * 9000 + "\n"
    )
    assert result.returncode == 2
    assert "RequestError: the prompt has" in result.stderr and "Traceback" not in result.stderr
    assert len(re.findall(COST, result.stdout)) == 1


def test_ctrl_c_between_piped_lines_promises_no_resumption(
    environment: dict[str, str], small_bundle: Path
) -> None:
    command = [sys.executable, "-m", CLI, "run", str(small_bundle), "--max-tokens", "4"]
    with subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a suite in the background ignores it
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write("a cab\n")
        process.stdin.flush()
        while not re.search(COST, process.stdout.readline()):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == ""


def test_a_wrong_name_is_told_which_bundles_there_are(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = pipe(environment, "run", "nosuch")
    assert result.returncode == 2
    assert "RecipeError: there is no recipe 'nosuch'" in result.stderr
    assert "or a bundle's folder (there is none in bundles yet)" in result.stderr
    for name in ("two", "one"):
        (tmp_path / "bundles" / name).mkdir(parents=True)
        (tmp_path / "bundles" / name / "manifest.json").touch()
    (tmp_path / "bundles" / "none").mkdir()
    assert "or a bundle's folder (bundles/one, bundles/two)" in pipe(environment, "run", "nosuch").stderr


def test_the_demo_shows_a_conversation(environment: dict[str, str], small_bundle: Path) -> None:
    result = pipe(environment, "demo", str(small_bundle.parent / "small.yaml"), "--output", str(small_bundle))
    assert result.returncode == 0, result.stderr
    assert len(re.findall(COST, result.stdout)) == 3
    assert "> What is it famous for?" in result.stdout
