"""``python -m onnxq``."""

from __future__ import annotations

import sys

from onnxq.starting import start

sys.exit(start())
