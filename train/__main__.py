"""``python -m train [COMMAND] …``."""

import os
import sys

from kornia_hardnet8.signals import answered_signals

if __name__ == "__main__":
    with answered_signals():
        from train.cli import main

        code = main(sys.argv[1:])
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from train.distributed import end_process

            end_process(code)
        sys.exit(code)
