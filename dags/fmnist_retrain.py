"""### Weekly retraining of the classifier

Reads and checks the images, trains and fine-tunes a network, evaluates it, publishes the `.h5`, verifies the release,
and only then makes it the champion. If a task fails or rejects, the champion stays and an alert gives the reason.

* **Schedule**: Mondays at 02:00 UTC (`FMNIST_SCHEDULE`), and on request with parameters. Backfills are of no use: a run
  always takes the data that is in the store now.
* **Nothing changed**: if data, code and parameters are the champion's, the run ends green without training.
* **Duration** on two cores with Fashion-MNIST: `quick` 3 minutes, `standard` 5, `thorough` 25. **Results**: the
  [Releases page](/fmnist/), and the tab "Report" of a run.

#### When a task is red

| task | first look | then |
|---|---|---|
| `ingest` | its log names the file or setting | correct it, clear the task |
| `validate_data` | the report, section "Validate data" | correct the source, trigger a new run |
| `train`, `fine_tune` | its log: killed, out of memory, NaN loss | clear the task: training resumes |
| `accuracy_gate`, `promotion_gate` | button "Verdict" | nothing: the champion stays |
| `publish`, `verify_release`, `promote` | its log | remove the cause, clear the task |
| any, with "does not accept connections" or "does not respond" | the object store | clear the task when it is back |

Each alert has a section in the [runbook](/fmnist/runbook).
"""

from __future__ import annotations

from airflow.sdk import DAG, Asset, TaskGroup, chain, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException
from fmnist_defaults import DAGS, Approval, get_operator, link_pages, read_schedule
from fmnist_forms import build_retrain_form
from fmnist_retrain_run import (
    ReleaseLink,
    VerdictLink,
    build_report_url,
    find_approval,
    find_champion_asset,
    make_task,
    read_outcome,
    run_step,
    save_report,
)

from fmnist_tasks.alerts import alert_run_timeout, alert_task_failure
from fmnist_tasks.settings import RUN_LIMIT, list_datasets, name_champion_asset, name_dag


@task.short_circuit
def detect_change() -> list[int]:
    """Return the seeds to train with. If nothing has changed since the champion was trained, skip all later tasks."""
    seeds: list[int] = run_step("detect_change").seeds
    return seeds


@task(
    doc_md="Train a base model from scratch. Early stopping restores the best weights; a killed task resumes.",
    map_index_template="seed {{ task.op_kwargs['seed'] }}",
)
def train(seed: int) -> None:
    """Train one base model. Airflow shows only `doc_md` of a mapped task."""
    run_step("train", seed=seed)


@task.branch
def promotion_gate() -> str:
    """Decide from the metrics whether the candidate may become the champion. On hold, it waits for an approval."""
    return "tuned_model.approval" if run_step("promotion_gate").decision == "hold" else "release.publish"


@task(trigger_rule="none_failed_min_one_success")
def publish() -> str:
    """Write the release to the object store, its manifest last."""
    return str(run_step("publish", approval=find_approval()).version)


@task
def promote() -> None:
    """Append the release to the champion log, and emit its event; skipped if the champion has changed meanwhile."""
    promotion = run_step("promote")
    if not promotion.is_current:
        raise AirflowSkipException(promotion.summary)
    event = get_current_context()["outlet_events"][find_champion_asset()]
    event.extra.update(promotion.model_dump(include={"version", "sequence", "accuracy"}))


def fmnist_retrain(dataset: str = "") -> DAG:
    """The graph of a dataset: data, base model, tuned model, release."""
    graph = DAG(
        dag_id=name_dag(dataset),
        dag_display_name=f"Retrain {dataset}".strip(),
        doc_md=link_pages(__doc__, dataset),
        description="Retrain the classifier, and promote it if it passes every gate",
        schedule=read_schedule(),
        dagrun_timeout=RUN_LIMIT,
        on_failure_callback=alert_run_timeout,
        params=build_retrain_form(),
        user_defined_macros={"read_outcome": read_outcome},
        **DAGS,
    )
    with graph, TaskGroup("data", tooltip="Read and check the images"):
        seeds = detect_change()
        chain(
            make_task("ingest", "Find the dataset, check its files, read new batches, and save them in the store."),
            make_task("validate_data", "Check every image. Bad batches are quarantined; a bad dataset stops the run."),
            seeds,
        )

    with graph, TaskGroup("base_model", tooltip="Train from scratch and check the accuracy"):
        accuracy_gate = make_task("accuracy_gate", "Stop the run unless the base model reaches the accuracy threshold.")
        get_operator(accuracy_gate).operator_extra_links = (VerdictLink(),)
        chain(
            train.expand(seed=seeds),
            make_task("choose_base", "Select the base model with the lowest validation loss."),
            make_task("evaluate_base", "Evaluate the base model on the test images."),
            accuracy_gate,
        )

    with graph, TaskGroup("tuned_model", tooltip="Fine-tune, and check the candidate"):
        fine_tune = make_task(
            "fine_tune",
            "Fine-tune with L2 and a cosine schedule. The model with the lower validation loss is the candidate.",
        )
        evaluate_tuned = make_task("evaluate_tuned", "Evaluate the candidate on the test images and on OOD images.")
        gate = promotion_gate()
        get_operator(gate).operator_extra_links = (VerdictLink(),)
        approval = Approval(
            task_id="approval",
            doc_md="Waits up to three days for a user to approve or reject a candidate on hold. Without a response, "
            "the run is rejected.",
            subject="Promote the candidate of run {{ run_id }}?",
            body=f"{{{{ read_outcome('{dataset}', run_id, 'promotion_gate') }}}}\n\n"
            f"[Verdict and metrics]({build_report_url(dataset)}#promotion_gate)",
            on_failure_callback=[alert_task_failure, save_report],
        )
        chain(accuracy_gate, fine_tune, evaluate_tuned, gate, approval)

    with graph, TaskGroup("release", tooltip="Publish, verify, promote"):
        release = publish()
        get_operator(release).operator_extra_links = (ReleaseLink(),)
        chain(
            [gate, approval],
            release,
            make_task("verify_release", "Read the release back; check that its predictions are bit-identical."),
            promote.override(outlets=[Asset(name_champion_asset(dataset))])(),
        )
    return graph


for name in ("", *list_datasets()):  # the default dataset, and each declaration in FMNIST_DATASETS
    fmnist_retrain(name)
