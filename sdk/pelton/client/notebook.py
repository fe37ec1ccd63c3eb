"""Whether this process is the kernel of a notebook."""

from __future__ import annotations

import sys


def in_notebook() -> bool:
    """Whether a kernel runs here; that its modules are imported says nothing."""
    application = getattr(sys.modules.get("ipykernel.kernelapp"), "IPKernelApp", None)
    return application is not None and bool(application.initialized())
