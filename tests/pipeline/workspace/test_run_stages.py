"""Stages: what is skipped, what runs again, and that a kill at any write leaves a bundle that resumes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.workspace.run_stages import pending_stages, run_stages
from kvfold.pipeline.workspace.stage import Job, dependents, requirements
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.pipeline.workspace.write_bundle import BundleWriter
from kvfold.plugins.contract.errors import BundleError
from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.bundle import open_bundle
from tests.pipeline.fake_stages import QuietDisplay, contents, fake_recipe, fake_stages

ALL = ["first", "second", "third", "branch"]


def run(root: Path, recipe: Recipe | None = None, until: str | None = None) -> list[str]:
    ran: list[str] = []
    run_stages(recipe or fake_recipe(), root, fake_stages(ran), QuietDisplay(), until)
    return ran


def test_unchanged_stages_are_skipped(tmp_path: Path) -> None:
    assert run(tmp_path / "b") == ALL
    before = contents(tmp_path / "b")
    assert run(tmp_path / "b") == []
    assert contents(tmp_path / "b") == before
    open_bundle(tmp_path / "b", verify="full")


def test_what_is_pending_is_what_a_run_would_do(tmp_path: Path) -> None:
    """In a bundle that is not there yet too; what ran before says how long it took."""

    def pending(seed: int = 0, until: str | None = None) -> dict[str, bool]:
        found = pending_stages(fake_recipe(seed=seed), tmp_path / "b", fake_stages([]), until)
        return {stage.name: seconds is not None for stage, seconds in found}

    assert pending() == dict.fromkeys(ALL, False)
    assert list(pending(until="branch")) == ["first", "branch"]
    assert not (tmp_path / "b").exists()
    run(tmp_path / "b")
    assert pending() == {}
    assert pending(seed=5) == {"second": True, "third": True}
    assert run(tmp_path / "b", fake_recipe(seed=5)) == ["second", "third"]


def test_until_stops_early_and_goes_on_later(tmp_path: Path) -> None:
    assert run(tmp_path, until="second") == ["first", "second"]
    assert run(tmp_path) == ["third", "branch"]


def test_a_changed_setting_runs_its_stage_and_what_depends_on_it(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, fake_recipe(seed=5)) == ["second", "third"]
    assert run(tmp_path, fake_recipe(source="two", seed=5)) == ALL


def test_the_same_bytes_leave_later_stages_unchanged(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "first" / "a.txt").write_text("damaged")
    assert run(tmp_path) == ["first"]  # it writes what it wrote before


def test_files_of_an_earlier_run_go_from_a_stages_folders(tmp_path: Path) -> None:
    """Its record goes before it runs where what it was made from changed too."""

    def run_by_layer(source: str, layers: tuple[int, ...]) -> None:
        def write(workspace: Workspace, job: Job) -> None:
            (job.output / "second").mkdir()
            for layer in layers:
                (job.output / "second" / f"{layer}.txt").write_text("layer")

        first, second, *_ = fake_stages([])
        stages = (first, replace(second, run=write, settings=lambda recipe: layers))
        run_stages(fake_recipe(source=source), tmp_path, stages, QuietDisplay())
        assert sorted(path.name for path in (tmp_path / "second").iterdir()) == [f"{n}.txt" for n in layers]

    run_by_layer("one", (0, 1, 2))
    run_by_layer("two", (1,))
    run_by_layer("three", (0, 2))


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_a_damaged_file_runs_its_stage_again(tmp_path: Path, damage: str) -> None:
    run(tmp_path)
    expected = contents(tmp_path)
    path = tmp_path / "second" / "b.txt"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(b"x" + path.read_bytes()[1:])
    assert run(tmp_path) == ["second"]
    assert contents(tmp_path) == expected


def test_files_that_do_not_do_on_this_machine_are_made_again(tmp_path: Path) -> None:
    """Asked of files only that are there and right; the stage's hash stays."""
    asked: list[Path] = []

    def run_lacking(why: str | None) -> tuple[list[str], list[str]]:
        def why_lacking(recipe: Recipe, root: Path) -> str | None:
            asked.append(root)
            return why

        ran: list[str] = []
        first, second, third, branch = fake_stages(ran)
        stages = (first, replace(second, why_lacking=why_lacking), third, branch)
        pending = [stage.name for stage, _ in pending_stages(fake_recipe(), tmp_path, stages)]
        run_stages(fake_recipe(), tmp_path, stages, QuietDisplay())
        return pending, ran

    assert run_lacking("no kernels") == (ALL, ALL) and not asked
    assert run_lacking(None) == ([], [])
    assert run_lacking("no kernels") == (["second", "third"], ["second"])  # it writes what it wrote before
    assert run_lacking(None) == ([], [])
    assert set(asked) == {tmp_path}


def test_a_failing_stage_keeps_what_finished(tmp_path: Path) -> None:
    ran: list[str] = []
    stages = fake_stages(ran)
    (tmp_path / "second").write_text("a file where the stage's folder belongs")
    with pytest.raises(
        BundleError, match=r"/second cannot be read or written \(File exists\).*run the same command"
    ):
        run_stages(fake_recipe(), tmp_path, stages, QuietDisplay())
    assert ran == ["first", "second"]
    (tmp_path / "second").unlink()
    assert run(tmp_path) == ["second", "third", "branch"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def run_out_of_space(workspace: Workspace, job: Job) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write(2) reports it: without a path

    stage = replace(fake_stages([])[0], run=run_out_of_space)
    with pytest.raises(
        BundleError, match=rf"{tmp_path} cannot be read or written \(No space left.*free disk space"
    ):
        run_stages(fake_recipe(), tmp_path, (stage,), QuietDisplay())


def test_what_a_stage_keeps_while_it_works_goes_once_its_files_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(workspace: Workspace, job: Job) -> None:
        (workspace.root / "work").mkdir(exist_ok=True)
        (job.output / "a.txt").write_text("done")

    stage = replace(fake_stages([])[0], files=("a.txt",), run=run, scratch="work")
    with monkeypatch.context() as patch:
        patch.setattr(BundleWriter, "commit", lambda *_: (tmp_path / "no disk").stat())
        with pytest.raises(BundleError, match="no disk"):
            run_stages(fake_recipe(), tmp_path, (stage,), QuietDisplay())
    assert (tmp_path / "work").is_dir()
    run_stages(fake_recipe(), tmp_path, (stage,), QuietDisplay())
    assert (tmp_path / "a.txt").is_file() and not (tmp_path / "work").exists()


def test_a_bundle_of_another_version_starts_anew(tmp_path: Path) -> None:
    """Files of the old version that no stage writes any more go; files that are not the bundle's stay."""
    run(tmp_path)
    manifest = tmp_path / "manifest.json"
    text = manifest.read_text().replace(f'"{VERSION}"', '"0.0.1"')
    manifest.write_text(text.replace("third/b.txt", "third/old.txt"))
    (tmp_path / "third" / "b.txt").rename(tmp_path / "third" / "old.txt")
    (tmp_path / "notes.txt").write_text("a user's own")
    assert run(tmp_path) == ALL
    assert not (tmp_path / "third" / "old.txt").exists()
    assert (tmp_path / "notes.txt").exists()


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / ".lock")
    with lock, pytest.raises(BundleError, match="another kvfold process"):
        run(tmp_path)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="is a file"):
        run(tmp_path / "file")
    with pytest.raises(BundleError, match="cannot be written"):
        run(Path("/proc/bundle"))


def test_a_model_s_folder_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("the model's")
    with pytest.raises(BundleError, match=r"no manifest.json: it is a model's folder.* choose another"):
        run(tmp_path)


def test_requirements_are_transitive_and_nothing_else_runs(tmp_path: Path) -> None:
    assert requirements("third", fake_stages([])) == {"first", "second"}
    assert run(tmp_path, until="branch") == ["first", "branch"]


def test_stages_of_other_targets_rest(tmp_path: Path) -> None:
    ran: list[str] = []
    mine, other = (
        replace(stage, target=target)
        for stage, target in zip(fake_stages(ran)[1:3], ("cpu", "cuda"), strict=True)
    )
    run_stages(
        fake_recipe(), tmp_path, (fake_stages(ran)[0], mine, replace(other, needs=("first",))), QuietDisplay()
    )
    assert ran == ["first", "second"]


def test_dependents_are_transitive() -> None:
    assert dependents("first", fake_stages([])) == {"second", "third", "branch"}
    assert dependents("second", fake_stages([])) == {"third"}


def _die_at(root: Path, recipe: Recipe, fatal: int) -> bool:
    """Fork, die without any clean-up at the fatal-th write, and say whether the run got that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def watched(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            writes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
            if event == "open":  # path, mode, flags
                writes = str(arguments[0]).startswith(str(root)) and "w" in str(arguments[1])
            if writes:
                count += 1
                if count == fatal:
                    os._exit(9)

        sys.addaudithook(watched)
        run(root, recipe)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def _consistent(root: Path) -> None:
    """Whatever the manifest names is there, whole, and made from what it names beside it."""
    if not (root / "manifest.json").exists():
        return
    open_bundle(root, verify="full")
    recorded = json.loads((root / "manifest.json").read_text())["stages"]
    for name, needs in (("second", "first"), ("third", "second"), ("branch", "first")):
        if name in recorded and needs in recorded:
            first_line, *rest = (root / name / "a.txt").read_text().split("\n", 1)
            assert rest[0] == (root / needs / "a.txt").read_text(), (name, first_line)


def test_a_kill_at_every_write_leaves_a_bundle_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First a fresh run, then one over a bundle of other settings: killed at each file operation.

    Without fsync, which is slow and matters to a power cut only: what a killed process wrote, stays.
    """
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    run(tmp_path / "expected", fake_recipe(source="two", seed=7))
    expected = contents(tmp_path / "expected")
    for kind in ("fresh", "rerun"):
        fatal, died = 0, True
        while died:
            fatal += 1
            root = tmp_path / f"{kind}{fatal}"
            if kind == "rerun":
                run(root)
            died = _die_at(root, fake_recipe(source="two", seed=7), fatal)
            _consistent(root)
            run(root, fake_recipe(source="two", seed=7))
            assert contents(root) == expected, (kind, fatal)
        assert fatal > 25, "the audit hook saw too few writes to prove anything"


# Python ignores Ctrl-C where its parent does, as a shell has it of what runs in the background.
SLOW_RUN = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from contextlib import nullcontext
from pathlib import Path
from kvfold.pipeline.workspace.run_stages import run_stages
from tests.pipeline.fake_stages import QuietDisplay, fake_recipe, fake_stages
class Slow(QuietDisplay):
    def running(self, stage, place, why, last_time):
        return nullcontext(lambda fraction: time.sleep(0.2))
print("ready", flush=True)
run_stages(fake_recipe(), Path(sys.argv[1]), fake_stages([]), Slow())
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_real_signal_in_a_stage_leaves_a_bundle_that_resumes(tmp_path: Path, kind: signal.Signals) -> None:
    run(tmp_path / "expected")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(tmp_path / "b")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)  # inside the second stage
    process.send_signal(kind)
    assert process.wait() != 0
    ran = run(tmp_path / "b")
    assert "third" in ran
    assert contents(tmp_path / "b") == contents(tmp_path / "expected")
