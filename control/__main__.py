"""`python -m control`: one process that serves the admin API."""

import os
import sys
from functools import partial

from common.lifecycle import ProcessSettings, run
from common.settings import SettingsError, load
from control.app import main
from control.settings import ControlSettings

if __name__ == "__main__":
    try:
        settings, process = load(ControlSettings, os.environ), load(ProcessSettings, os.environ)
    except SettingsError as problem:
        sys.exit(str(problem))
    sys.exit(run({"control": partial(main, settings)}, process))
