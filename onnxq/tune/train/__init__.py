"""Models as differentiable torch modules, and what trains them; needs ``onnxq[train]``.

Importing anything from here without torch raises `InputError` with what to install.
"""

import importlib.util

from onnxq.errors import InputError

if importlib.util.find_spec("torch") is None:
    raise InputError(
        'training and other gradients need torch; install it with: pip install "onnxq[train]"'
    )
