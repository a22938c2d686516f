"""What a PersRM and its features may be called."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # an option's value, and a key of the bundle's manifest
