"""Slow imports, done once by a worker before it forks its tasks. Celery's setting `imports` names this module.

Only libraries are preloaded. Each task imports the project's own modules again, so its record names the code that ran.
Importing TensorFlow starts no threads, which a fork would lose; tests/test_preload.py checks this.
"""

from fmnist_tasks import data  # noqa: F401, I001 - sets variables that Great Expectations reads on import
from fmnist_tasks.model import libraries  # noqa: F401
import great_expectations  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import minio  # noqa: F401
import PIL.Image  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.datasets
import sklearn.decomposition
import sklearn.discriminant_analysis
import sklearn.metrics
import sklearn.model_selection
import sklearn.pipeline  # noqa: F401
