"""`python -m raymat`: the same as `raymat`, where no script is on the PATH."""

from __future__ import annotations

import sys

from raymat.config.shadows import forget_working_directory

if __name__ == "__main__":
    forget_working_directory()  # before what a file there could take the place of
    from raymat.cli.main import main

    sys.exit(main())
