"""Lets these tests use the helpers of other tests: the local Hub, the tiny encoders, the S3 server."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("stages", "store"):
    sys.path.append(str(Path(__file__).parents[1] / folder))
