"""The key with which Flask, which serves Airflow's login form, signs cookies. The API server executes this file.

Whoever has this key can sign in as any user. By default Airflow uses the key of its log servers, which workers also
have.
"""

from fmnist_tasks.credentials import read_secret

SECRET_KEY = read_secret("SESSION_KEY")
