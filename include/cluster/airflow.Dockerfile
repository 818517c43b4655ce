# Airflow with the locked requirements, this project, and the dataset from Debian's package.
FROM apache/airflow:slim-3.3.2-python3.12

USER root
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl dataset-fashion-mnist \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner airflow --group root /opt/fmnist /var/lib/fmnist /var/lib/fmnist/cache /var/lib/fmnist/tmp
USER airflow

WORKDIR /opt/fmnist
COPY --chown=airflow:root pyproject.toml requirements.txt README.md LICENSE ./
# The lock file as constraints: the project's dependencies at the locked versions, without development tools.
RUN uv pip install --no-cache --constraints requirements.txt --requirements pyproject.toml
COPY --chown=airflow:root fmnist_tasks fmnist_tasks
COPY --chown=airflow:root dags dags
COPY --chown=airflow:root plugins plugins
COPY --chown=airflow:root include include
RUN uv pip install --no-cache --no-deps --build-constraints requirements.txt --editable .

ENV AIRFLOW__CORE__DAGS_FOLDER=/opt/fmnist/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/fmnist/plugins \
    FMNIST_HOME=/var/lib/fmnist
# docker-compose.yaml sets complete commands and an init process (`init: true`).
ENTRYPOINT []
