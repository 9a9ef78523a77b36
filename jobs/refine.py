"""Train MattingRefine: `python jobs/refine.py --help`."""

import sys

from raymat.cli.main import job_main

if __name__ == "__main__":
    sys.exit(job_main("refine"))
