"""`python -m router`: one router."""

import os
import sys
from functools import partial

from common import lifecycle
from common.settings import load
from router.app import main
from router.settings import RouterSettings

if __name__ == "__main__":
    settings = load(RouterSettings, os.environ)
    process = load(lifecycle.ProcessSettings, os.environ)
    sys.exit(lifecycle.run({"router": partial(main, settings)}, process))
