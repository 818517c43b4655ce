"""Images and labels: sources, formats, checks, storage and splits."""

import logging
import os

# Great Expectations reads the variable on import, and later logs every function that it registers.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
logging.getLogger("great_expectations").setLevel(logging.WARNING)
