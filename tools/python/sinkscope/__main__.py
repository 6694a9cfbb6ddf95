# SPDX-License-Identifier: Apache-2.0
"""python -m sinkscope COMMAND ...: the package's commands."""

from __future__ import annotations

import sys

USAGE = """usage: python -m sinkscope preflight --model DIR_OR_CONFIG_JSON [--attn NAME] ...   is it right for a model?
       python -m sinkscope doctor                                             what is registered here, and do sinks learn?
Each has --help."""


def main(arguments: list[str]) -> int:
    """Exit codes as the commands have them; 2 for what is none."""
    if arguments[:1] == ["preflight"]:
        from sinkscope import preflight

        return preflight.main(arguments[1:])
    if arguments[:1] == ["doctor"]:
        from sinkscope import doctor

        return doctor.main(arguments[1:])
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    print(f"sinkscope: {arguments[0] if arguments else 'nothing'!r} is no command\n{USAGE}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
