"""`python -m billing`: one billing process; any number may run side by side."""

import os
import sys
from functools import partial

from billing.app import main
from billing.settings import BillingSettings
from common.lifecycle import ProcessSettings, run
from common.settings import SettingsError, load

if __name__ == "__main__":
    try:
        settings, process = load(BillingSettings, os.environ), load(ProcessSettings, os.environ)
    except SettingsError as problem:
        sys.exit(str(problem))
    sys.exit(run({"billing": partial(main, settings)}, process))
