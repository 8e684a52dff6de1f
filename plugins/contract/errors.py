"""Typed errors raised at kvfold's boundaries.

Every message says what is wrong, which value it was, and what to do next. `assert` is kept for
internal laws that no input can break.
"""


class KvfoldError(Exception):
    """Base of every error a user can cause; the command line prints it without a traceback."""


class PlanError(KvfoldError):
    """A FoldPlan, or the preset that should produce it, breaks a law."""


class UnsupportedModelError(KvfoldError):
    """The checkpoint is readable, but its architecture or one of its features is not supported."""


class CheckpointError(KvfoldError):
    """A checkpoint is missing, truncated, or does not hold the tensors its config promises."""


class FetchError(KvfoldError):
    """A model or text from the package index cannot be had, or is another than the pinned one."""


class CalibrationError(KvfoldError):
    """Calibration text is missing, unreadable, or too short to calibrate from."""


class AdapterError(KvfoldError):
    """An adapter is missing or damaged, or belongs to another base model, plan or format."""


class HealingError(KvfoldError):
    """Training diverged."""


class RecipeError(KvfoldError):
    """A recipe is not valid YAML, has unknown keys, or holds values out of range."""


class ExportError(KvfoldError):
    """A graph could not be written, or a graph pass did not find what the plan promises."""


class BundleError(KvfoldError):
    """A bundle is missing, unwritable, corrupted, or written by another kvfold version."""


class KernelError(KvfoldError):
    """Kernels are missing, damaged, refused by the backend, or not made for what a node asks."""


class RequestError(KvfoldError):
    """A request cannot be served as asked: prompt too long, token id out of range, bad parameter."""


class CapacityError(KvfoldError):
    """More KV pages are asked for than the pool has, or more memory than the GPU."""


class TierError(KvfoldError):
    """A tier's directory cannot be used: no directory, another user's, or open to others."""


class SessionError(KvfoldError):
    """A session that was kept cannot be opened: its file is damaged, another version's, model's or user's."""


class SessionBusyError(SessionError):
    """A session runs elsewhere: its file is held by another process, or by another session of this one."""


class EngineError(KvfoldError):
    """An engine failed in the middle of its work and takes no more; every request it ran ended with this."""


class ValidationError(KvfoldError):
    """A validation ran and missed a threshold of the recipe."""


class TargetError(KvfoldError):
    """A target cannot be built or run on this machine."""


class MissingExtraError(KvfoldError):
    """A package of one of kvfold's extras is not installed, and what was asked for needs it."""
