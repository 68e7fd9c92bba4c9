"""Run the command line as `python -m worker`."""

from __future__ import annotations

import sys

from worker.cli.entry import main

sys.exit(main())
