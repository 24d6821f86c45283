"""``python -m eval COMMAND …``."""

import sys

from kornia_hardnet8.signals import answered_signals

if __name__ == "__main__":
    with answered_signals():
        from eval.cli import main

        sys.exit(main(sys.argv[1:]))
