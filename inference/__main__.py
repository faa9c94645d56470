"""`python -m inference`: one worker for one model."""

import os
import sys
from functools import partial

from common.lifecycle import ProcessSettings, run
from common.settings import SettingsError, load
from inference.app import main
from inference.settings import InferenceSettings

if __name__ == "__main__":
    try:
        settings, process = load(InferenceSettings, os.environ), load(ProcessSettings, os.environ)
    except SettingsError as problem:
        sys.exit(str(problem))
    sys.exit(run({"inference": partial(main, settings)}, process))
