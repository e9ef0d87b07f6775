"""Generated programs behind bubblewrap, Landlock or a container."""

from rlsgd.core.renamed import moved_names

__getattr__ = moved_names(
    "rlsgd.rewards.sandbox",
    "rlsgd.rewards.sandbox.base",
    "Bubblewrap LIBRARIES PYTHON_FLAGS Sandbox Unsandboxed start_piped",
)
