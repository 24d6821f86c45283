"""``python -m train [COMMAND] …``."""

import os
import sys

from train.cli import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from train.distributed import end_process

        end_process(code)
    sys.exit(code)
