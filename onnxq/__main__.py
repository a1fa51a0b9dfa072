"""``python -m onnxq``."""

from __future__ import annotations

import sys

from onnxq.cli import main

sys.exit(main())
