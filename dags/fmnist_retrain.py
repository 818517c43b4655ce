"""### Weekly retraining of the Fashion-MNIST classifier

Ingests and checks the images, trains and fine-tunes a network, judges it, publishes the `.h5` to the object store,
proves that what was published is what was judged, and only then makes it the champion. Whatever goes wrong, the old
champion stays in service and an alert says why.

* **Schedule**: Mondays at 02:00 UTC, beginning with the next one after it is first unpaused; on demand with
  parameters. A scheduled run has their defaults, and waits for an approval only with `FMNIST_APPROVAL=true`.
* **Nothing new**: if data, code and parameters are those of the champion, the run ends green without training.
* **Settings**: environment variables `FMNIST_*`, see the README.
* **Results**: `runs/<run id>/` of the object store, with `report.html`; releases in `releases/`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink, CronTriggerTimetable, Param, TaskGroup, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException
from fmnist_defaults import CHAMPION, TASKS, Approval, get_actor, get_operator, step

from fmnist_tasks.alerts import airflow_address, run_timed_out
from fmnist_tasks.settings import DAG_ID, EXACT_TYPE, MOST_CANDIDATES, PROFILES, RUN_LIMIT, Parameters, Settings

FIRST_RUN_DELAY = timedelta(minutes=10)  # at most, of the first run by the schedule: longer than a restart takes
DEFAULT = Parameters(approval=Settings.from_environment().approval)


class RunLink(BaseOperatorLink):
    """A button on a gate: the report of its run, at the gate's verdict."""

    name = "Verdict"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Where the registry page shows the report."""
        return f"{page()}/runs/{quote(ti_key.run_id)}#{ti_key.task_id.rpartition('.')[2]}"


class ReleaseLink(BaseOperatorLink):
    """A button on `publish`: the release."""

    name = "Release"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Where the registry page shows the release."""
        return f"{page()}/releases/{ti_key.xcom_pull(task_ids=ti_key.task_id)['version']}"


def page() -> str:
    """The address of the registry page."""
    return f"{airflow_address()}/fmnist"


def current_run() -> Any:
    """The run that this task belongs to, as the steps know it."""
    from fmnist_tasks.steps import Run

    context = get_current_context()
    created = context["dag_run"].run_after.astimezone(UTC).isoformat(timespec="seconds")
    values = dict(context["params"])
    ignored = sorted(values.keys() - DEFAULT.as_json().keys())  # Airflow accepts any key in a run's conf
    parameters = Parameters.from_mapping({name: value for name, value in values.items() if name not in ignored})
    if sys.argv[1:3] == ["dags", "test"]:  # nobody would be asked there, and nothing ends the waiting
        parameters = replace(parameters, approval=False)
    return Run(context["run_id"], created, parameters, get_actor(), tuple(ignored))


@step
def ingest() -> dict[str, Any]:
    """Find the dataset, check size and digest of each file, pick up new batches, and keep all as blobs."""
    from fmnist_tasks import steps

    return steps.ingest(current_run())


@step
def validate_data(ingested: dict[str, Any]) -> dict[str, Any]:
    """Ask Great Expectations about every image; bad batches go to quarantine, a bad dataset stops the run."""
    from fmnist_tasks import steps

    return steps.validate_data(current_run(), ingested)


@task.short_circuit
def detect_change(ingested: dict[str, Any], validated: dict[str, Any]) -> list[int]:
    """The seeds to train with; none, which skips the rest and ends green, if nothing changed since the champion."""
    from fmnist_tasks import steps

    seeds: list[int] = steps.detect_change(current_run(), ingested, validated)["seeds"]
    return seeds


@step(
    doc_md="Train a candidate; early stopping on validation loss restores the best weights, a killed training goes on.",
    map_index_template="seed {{ task.op_kwargs['seed'] }}",
)
def train(validated: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train one candidate. Airflow takes the text of a mapped task from `doc_md` only."""
    from fmnist_tasks import steps

    return steps.train(current_run(), validated, seed)


@step
def choose_base(candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The candidate with the least validation loss becomes the base model."""
    from fmnist_tasks import steps

    return steps.choose_base(current_run(), list(candidates))


@step
def evaluate_base(validated: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """Confusion matrix, precision, recall and F1 of the base model on the test images."""
    from fmnist_tasks import steps

    return steps.evaluate_base(current_run(), validated, trained)


@step
def accuracy_gate(validated: dict[str, Any], trained: dict[str, Any], evaluated: dict[str, Any]) -> dict[str, Any]:
    """Stop the run, red, unless the base model reaches the accuracy threshold on the test images."""
    from fmnist_tasks import steps

    return steps.accuracy_gate(current_run(), validated, trained, evaluated)


@step
def fine_tune(validated: dict[str, Any], trained: dict[str, Any], accepted: dict[str, Any]) -> dict[str, Any]:
    """Go on from the base model with L2 and a learning-rate schedule; the one with less validation loss goes on."""
    from fmnist_tasks import steps

    return steps.fine_tune(current_run(), validated, trained, accepted)


@step
def evaluate_tuned(validated: dict[str, Any], tuned: dict[str, Any]) -> dict[str, Any]:
    """Figures of the candidate on the test images and on fake ones."""
    from fmnist_tasks import steps

    return steps.evaluate_tuned(current_run(), validated, tuned)


@step
def promotion_gate(validated: dict[str, Any], tuned: dict[str, Any], evaluated: dict[str, Any]) -> dict[str, Any]:
    """Decide from the figures whether the candidate may become the champion."""
    from fmnist_tasks import steps

    return steps.promotion_gate(current_run(), validated, tuned, evaluated)


@task.branch
def ask_user(verdict: dict[str, Any]) -> str:
    """A candidate on hold waits for an approval; any other is published at once."""
    return "tuned_model.approval" if verdict["decision"] == "hold" else "release.publish"


@step(trigger_rule="none_failed_min_one_success")
def publish(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Write the release to the object store, its manifest last."""
    from fmnist_tasks import steps

    held = results["verdict"]["decision"] == "hold"  # only then there is an answer
    answer = get_current_context()["ti"].xcom_pull(task_ids="tuned_model.approval") if held else None
    return steps.publish(current_run(), **results, approval=answer)


@step
def verify_release(validated: dict[str, Any], evaluated: dict[str, Any], published: dict[str, Any]) -> dict[str, Any]:
    """Read the release back from the store; its predictions must equal, bit for bit, those that were judged."""
    from fmnist_tasks import steps

    return steps.verify_release(current_run(), validated, evaluated, published)


@step(outlets=[CHAMPION])
def promote(verdict: dict[str, Any], published: dict[str, Any], verified: dict[str, Any]) -> dict[str, Any]:
    """Append the release to the champion log and emit the champion's asset event.

    If it runs again after a later change of the champion, it is skipped: nothing changes, and no event is emitted.
    """
    from fmnist_tasks import steps

    promoted = steps.promote(current_run(), verdict, published, verified)
    if not promoted["current"]:
        raise AirflowSkipException(promoted["summary"])
    facts = {name: promoted[name] for name in ("version", "sequence", "accuracy")}
    get_current_context()["outlet_events"][CHAMPION].extra.update(facts)
    return promoted


@dag(
    dag_id=DAG_ID,
    doc_md=__doc__,
    # Without a start date the first run by the schedule is the next one after the DAG is unpaused. With one, or with
    # the default of `run_immediately`, a run that somebody triggers then would come after one of this week.
    schedule=CronTriggerTimetable("0 2 * * 1", timezone="UTC", run_immediately=FIRST_RUN_DELAY),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=RUN_LIMIT,
    tags=["fmnist"],
    on_failure_callback=run_timed_out,
    default_args=TASKS,
    params={
        "profile": Param(
            DEFAULT.profile,
            title="Profile",
            description="How much training: standard takes twice as long as quick, thorough six times as long as "
            "standard.",
            type="string",
            enum=list(PROFILES),
            section="Training",
        ),
        "seed": Param(
            DEFAULT.seed,
            title="Seed",
            description="The same seed, data and profile on the same machine give the same weights.",
            type="integer",
            minimum=0,
            maximum=2**31 - 1,
            section="Training",
            **EXACT_TYPE,
        ),
        "candidates": Param(
            DEFAULT.candidates,
            title="Candidates",
            description="Base models to train, each with a seed of its own, spread over the workers; the best on "
            "validation goes on.",
            type="integer",
            minimum=1,
            maximum=MOST_CANDIDATES,
            section="Training",
            **EXACT_TYPE,
        ),
        "accuracy_threshold": Param(
            DEFAULT.accuracy_threshold,
            title="Accuracy threshold",
            description="Share of the test images that must be classified correctly, 0 to 1. It takes precedence over "
            "the policy below. Empty: the value in include/gates.toml.",
            type=["null", "number"],
            minimum=0,
            maximum=1,
            section="Gates",
        ),
        "policy": Param(
            DEFAULT.policy,
            title="Policy",
            description="Values that replace those of include/gates.toml in this run, for instance "
            '{"classes": {"recall_at_least": 0.8}}.',
            type="object",
            section="Gates",
        ),
        "approval": Param(
            DEFAULT.approval,
            title="Approval",
            description="On: a candidate that is held waits up to three days for a user to approve it. Off: it is "
            "rejected. Scheduled runs have the default, which FMNIST_APPROVAL sets.",
            type="boolean",
            section="Gates",
        ),
        "force": Param(
            DEFAULT.force,
            title="Force",
            description="Train even if data, code and parameters are those of the champion.",
            type="boolean",
            section="When nothing is new",
        ),
    },
)
def fmnist_retrain() -> None:
    """The graph: data, base model, tuned model, release."""
    with TaskGroup("data"):
        ingested = ingest()
        validated = validate_data(ingested)
        seeds = detect_change(ingested, validated)

    with TaskGroup("base_model"):
        trained = choose_base(train.partial(validated=validated).expand(seed=seeds))
        base_figures = evaluate_base(validated, trained)
        accepted = accuracy_gate(validated, trained, base_figures)
        get_operator(accepted).operator_extra_links = (RunLink(),)

    with TaskGroup("tuned_model"):
        tuned = fine_tune(validated, trained, accepted)
        figures = evaluate_tuned(validated, tuned)
        verdict = promotion_gate(validated, tuned, figures)
        approval = Approval(
            task_id="approval",
            doc_md="Waits up to three days for a user to approve or reject a candidate on hold. Without a response, "
            "nothing is promoted.",
            subject="Promote the candidate of run {{ run_id }}?",
            body="{{ ti.xcom_pull(task_ids='tuned_model.promotion_gate')['summary'] }}\n\n"
            f"[Verdict and figures]({page()}/runs/{{{{ run_id | urlencode }}}}#promotion_gate)",
        )
        get_operator(verdict).operator_extra_links = (RunLink(),)
        asked = ask_user(verdict)
        asked >> approval

    with TaskGroup("release"):
        published = publish(
            {
                "ingested": ingested,
                "validated": validated,
                "trained": trained,
                "base_figures": base_figures,
                "tuned": tuned,
                "figures": figures,
                "verdict": verdict,
            }
        )
        get_operator(published).operator_extra_links = (ReleaseLink(),)
        [asked, approval] >> get_operator(published)
        verified = verify_release(validated, figures, published)
        promote(verdict, published, verified)


fmnist_retrain()
