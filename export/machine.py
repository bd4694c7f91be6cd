"""What figures depend on beside the network: the processor, and the versions of packages. Imports none of them."""

import platform
import re
from importlib import metadata
from pathlib import Path


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        facts = ""
    model = re.search(r"^model name\s*:\s*(.+)$", facts, re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """Return the installed version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
