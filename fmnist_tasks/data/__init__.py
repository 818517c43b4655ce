"""Images and labels: where they come from, how they are checked, how they are kept and split."""

import logging
import os

# Great Expectations reads the first when it is imported, and then reports every function that it registers.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
logging.getLogger("great_expectations").setLevel(logging.WARNING)
