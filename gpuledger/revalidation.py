"""Has an NFS client ask its server anew about the names in a folder, which it remembers."""

from __future__ import annotations

import os
from pathlib import Path


def revalidate(folder: Path) -> None:
    """Open a folder: a client asks at each open (nfs(5), close-to-open cache consistency).

    Raises:
        OSError: It cannot be opened; what its names mean is not known.
    """
    os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
