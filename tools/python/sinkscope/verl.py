# SPDX-License-Identifier: Apache-2.0
"""attention_sink in verl: importing this module registers it with transformers, from which verl makes its models.

verl imports it by itself in every process where the package is installed (entry point group verl.plugins), or where
`actor_rollout_ref.model.external_lib=sinkscope.verl` says so. Then

    +actor_rollout_ref.model.override_config.attn_implementation=attention_sink

trains GPT-OSS with its sinks; ulysses_sequence_parallel_size must be 1, which the implementation checks at every call. verl logs
a plugin that fails at DEBUG alone: `python -m sinkscope doctor` says what is registered.
"""

from __future__ import annotations

import sinkscope.transformers  # noqa: F401
