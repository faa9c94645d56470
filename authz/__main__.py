"""`python -m authz`: one authz server; any number may run beside each other."""

import os
import sys
from functools import partial

from authz.app import main
from authz.settings import AuthzSettings
from common.lifecycle import ProcessSettings, run
from common.settings import SettingsError, load

if __name__ == "__main__":
    try:
        settings, process = load(AuthzSettings, os.environ), load(ProcessSettings, os.environ)
    except SettingsError as problem:
        sys.exit(str(problem))
    sys.exit(run({"authz": partial(main, settings)}, process))
