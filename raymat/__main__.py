"""`python -m raymat`: the same as `raymat`, where no script is on the PATH."""

from __future__ import annotations

import sys

from raymat.cli.main import main

sys.exit(main())
