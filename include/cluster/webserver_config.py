"""What Flask, which has Airflow's login form, signs cookies with; Airflow executes this file in the API server.

Whoever has this key signs in as anyone. Airflow would take the key of its log servers, which workers have too.
"""

from fmnist_tasks.credentials import read_secret

SECRET_KEY = read_secret("SESSION_KEY")
