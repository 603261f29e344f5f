"""Lets these tests use the helpers of the encoder tests: the local Hub and the tiny encoders."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "stages"))
