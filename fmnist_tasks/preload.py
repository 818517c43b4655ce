"""What tasks import for seconds, imported once by a worker that forks its tasks: Celery's setting `imports` names this.

The libraries alone: the project's own modules are read anew by each task, so that its code is what its record says.
Importing TensorFlow starts none of its threads, which a fork would lose; tests/test_preload.py holds it to that.
"""

from fmnist_tasks import data, model  # noqa: F401, I001 - set what the libraries read when they are imported
import great_expectations  # noqa: F401
import keras  # noqa: F401
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
