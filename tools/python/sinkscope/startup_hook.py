# SPDX-License-Identifier: Apache-2.0
"""For launchers that import a module before training: registers attention_sink with transformers where the environment has
USE_ATTENTION_SINK=1, and does nothing otherwise. What is wrong is raised, not logged.

    USE_ATTENTION_SINK=1 python -c "import runpy, sinkscope.startup_hook; runpy.run_path('train.py', run_name='__main__')"
"""

from __future__ import annotations

import os

VARIABLE = "USE_ATTENTION_SINK"


def wanted() -> bool:
    """Raises ValueError for anything but 1, 0, nothing."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE} is {value!r}; supported are 1, 0 and nothing")
    return value == "1"


if wanted():
    import sinkscope.transformers  # noqa: F401
