"""`python -m inference`: one worker for one model."""

import os
import sys
from functools import partial

from common import lifecycle
from common.settings import load
from inference.app import main
from inference.settings import InferenceSettings

if __name__ == "__main__":
    settings = load(InferenceSettings, os.environ)
    process = load(lifecycle.ProcessSettings, os.environ)
    sys.exit(lifecycle.run({"inference": partial(main, settings)}, process))
