"""All settings: locations, the parameters of a run, and the training profiles.

Uses only the standard library and has no side effects, because every parse of a DAG file imports it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.text import make_printable

PROJECT = Path(__file__).resolve().parents[1]
_IS_CHECKOUT = (PROJECT / "include" / "gates.toml").is_file()  # False if the package was installed from a wheel
INCLUDE = PROJECT / "include" if _IS_CHECKOUT else Path(__file__).resolve().parent / "include"
DAG_ID = "fmnist_retrain"  # of the default dataset; of another dataset, see `name_dag`
WATCH_ID = "fmnist_watch"
ROLLBACK_ID = "fmnist_rollback"
WITHDRAW_ID = "fmnist_withdraw"
# Each change of the champion emits an event of this asset. It has a name but no URI: to parse a URI in a DAG file,
# Airflow would load the handlers of all providers.
CHAMPION_ASSET = "fmnist_champion_model"  # of the default dataset
DEFAULT_DATASET = "default dataset"  # its name in forms; names of others have no spaces
DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # is part of DAG IDs, keys and addresses
TASK_LIMIT = timedelta(hours=6)  # Airflow stops a task that takes longer
APPROVAL_LIMIT = timedelta(days=3)  # without a response within this time, the candidate is rejected
RUN_LIMIT = APPROVAL_LIMIT + 2 * TASK_LIMIT  # Airflow stops a run that takes longer
ALERT_LOOKBACK = timedelta(days=7)  # fmnist_watch looks this far back for failures without an alert
MAX_CANDIDATES = 16
SHELL_SUFFIX = "(shell)"  # follows the name of a user who acts from a shell
MAX_REASON_LENGTH = 500  # characters of a user's reason for a decision
_MAX_LABEL_LENGTH = 100  # characters of a name, owner or tag; Airflow refuses longer tags
_MAX_SCHEDULE_LENGTH = 200  # characters; Airflow's database has room for five times as many
_LOCAL_TIMEZONES = {"localtime", "posixrules", "Factory"}  # names of files that differ between machines
_DEFAULT_LABEL = "fmnist"  # owner and tag of the DAGs
# Schema of integer DAG parameters: newer drafts of JSON Schema accept 1.0 as an integer.
EXACT_TYPE: Mapping[str, Any] = {"$schema": "http://json-schema.org/draft-04/schema#"}


@dataclass(frozen=True)
class Settings:
    """Settings of the pipeline, each from one environment variable, most of them named ``FMNIST_<FIELD>``."""

    home: Path  # folder for everything that is written locally
    store: str  # URI of the object store: file:///folder or s3://bucket?endpoint=https://host:port
    dataset: Path  # declaration (TOML) of the default dataset
    datasets: Path  # folder with the declarations of further datasets, NAME.toml
    data_dir: Path | None  # folder with the dataset's files, searched after the cache
    overdue_after: timedelta  # FMNIST_OVERDUE_DAYS: alert if no run has succeeded for this long
    settle_time: timedelta  # FMNIST_SETTLE_SECONDS: ignore files in incoming/ of a folder that changed more recently
    instance: str  # name of this installation, for the subjects of alerts; empty: no name
    gates: Path  # policy (TOML) of the gates

    def find_declaration(self, dataset: str) -> Path:
        """The declaration of a dataset; an empty name is the default one.

        Raises :class:`SettingsError` if there is none.
        """
        if not dataset:
            return self.dataset
        path = self.datasets / f"{dataset}.toml"
        if not DATASET_NAME.fullmatch(dataset) or not path.is_file():
            existing = ", ".join(_list_names(self.datasets)) or "none"
            raise SettingsError(f"there is no dataset {dataset[:80]!r} in {self.datasets}; these exist: {existing}")
        return path

    @property
    def cache(self) -> Path:
        """Folder for downloaded dataset files."""
        return self.home / "cache"

    @property
    def training_lock(self) -> Path:
        """Lock file that allows one training task at a time on a machine."""
        return self.home / "training.lock"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings; an unset or empty variable takes its default.

        Raises :class:`SettingsError`, which names the variable, for a value that cannot be used.
        """
        home = _read_home(environment)
        days = environment.get("FMNIST_OVERDUE_DAYS") or "8"
        if not days.isdecimal() or len(days) > 5 or not int(days):
            raise SettingsError(f"FMNIST_OVERDUE_DAYS: {days!r} is not a whole number of days from 1 to 99999")
        seconds = environment.get("FMNIST_SETTLE_SECONDS") or "60"
        if not seconds.isdecimal() or len(seconds) > 6:
            raise SettingsError(f"FMNIST_SETTLE_SECONDS: {seconds!r} is not a whole number of seconds from 0 to 999999")
        return cls(
            home=home,
            store=read_store_uri(environment),
            dataset=_read_path(environment, "FMNIST_DATASET", INCLUDE / "datasets" / "fashion_mnist.toml"),
            datasets=_read_datasets_folder(environment),
            data_dir=_read_path(environment, "FMNIST_DATA_DIR", home) if environment.get("FMNIST_DATA_DIR") else None,
            overdue_after=timedelta(days=int(days)),
            settle_time=timedelta(seconds=int(seconds)),
            instance=_read_label(environment, "FMNIST_INSTANCE"),
            gates=_read_path(environment, "FMNIST_GATES", INCLUDE / "gates.toml"),
        )


@dataclass(frozen=True)
class DagSettings:
    """Settings of the DAGs in Airflow. Only the DAG files read them, so a fault in one stops no running task."""

    schedule: str | None  # cron expression of scheduled runs; None (in the environment "none"): on request only
    timezone: str  # of the schedule, an IANA name
    defaults: Parameters  # of scheduled runs and the trigger form
    owner: str
    tags: tuple[str, ...]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> DagSettings:
        """Read the settings; raises like :meth:`Settings.from_environment`."""
        return cls(
            schedule=_read_schedule(environment),
            timezone=_read_timezone(environment),
            defaults=_read_defaults(environment),
            owner=_read_label(environment, "FMNIST_OWNER") or _DEFAULT_LABEL,
            tags=_read_tags(environment),
        )


def list_datasets(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The names of the datasets besides the default one: those with a declaration in `FMNIST_DATASETS`."""
    return _list_names(_read_datasets_folder(environment))


def name_dag(dataset: str) -> str:
    """The ID of the DAG that retrains the classifier of a dataset; an empty name is the default dataset."""
    return f"{DAG_ID}_{dataset}" if dataset else DAG_ID


def name_command(dataset: str, command: str) -> str:
    """A command of `fmnist` for a dataset, as a message shows it; an empty name is the default dataset."""
    return f"`fmnist {f'--dataset {dataset} ' if dataset else ''}{command}`"


def name_run_command(dataset: str) -> str:
    """The command that runs the pipeline of a dataset once; an empty name is the default dataset."""
    return f"make run DATASET={dataset}" if dataset else "make run"


def find_dataset(dag_id: str | None) -> str | None:
    """The dataset of a DAG that retrains, the inverse of :func:`name_dag`; None for any other DAG."""
    if dag_id == DAG_ID:
        return ""
    name = (dag_id or "").removeprefix(f"{DAG_ID}_")
    return name if name != dag_id and DATASET_NAME.fullmatch(name) else None


def find_page(dataset: str) -> str:
    """The path of a dataset's Releases page, below Airflow's address."""
    return f"/fmnist/datasets/{dataset}/" if dataset else "/fmnist/"


def name_champion_asset(dataset: str) -> str:
    """The name of the asset of a dataset's champion."""
    return f"{CHAMPION_ASSET}_{dataset}" if dataset else CHAMPION_ASSET


def read_store_uri(environment: Mapping[str, str] = os.environ) -> str:
    """The URI of the store. It is read separately so that an alert can report a fault in another setting."""
    return environment.get("FMNIST_STORE") or (_read_home(environment) / "store").as_uri()


def read_instance(environment: Mapping[str, str] = os.environ) -> str:
    """The name of this installation, shortened if it is too long, read separately like :func:`read_store_uri`."""
    return make_printable(environment.get("FMNIST_INSTANCE", ""))[:_MAX_LABEL_LENGTH]


def read_predict_prefix(environment: Mapping[str, str] = os.environ) -> str:
    """The folder in the store whose images are classified after every change of the champion; empty: none."""
    return environment.get("FMNIST_PREDICT_PREFIX", "")


def _read_label(environment: Mapping[str, str], name: str) -> str:
    """A name for users, as one printable line."""
    value = make_printable(environment.get(name, ""))
    _require_short(name, value, _MAX_LABEL_LENGTH)
    return value


def _require_short(name: str, value: str, limit: int) -> None:
    """Raise :class:`SettingsError` if a value is too long for Airflow's database."""
    if len(value) > limit:
        raise SettingsError(f"{name}: {value[:40]!r}… is longer than {limit} characters")


def _read_schedule(environment: Mapping[str, str]) -> str | None:
    """The cron expression. It is validated when the timetable is created, since that needs Airflow."""
    schedule = environment.get("FMNIST_SCHEDULE") or "0 2 * * 1"
    _require_short("FMNIST_SCHEDULE", schedule, _MAX_SCHEDULE_LENGTH)
    return None if schedule == "none" else schedule


def _read_tags(environment: Mapping[str, str]) -> tuple[str, ...]:
    tags = tuple(filter(None, map(make_printable, environment.get("FMNIST_TAGS", "").split(","))))
    for tag in tags:
        _require_short("FMNIST_TAGS", tag, _MAX_LABEL_LENGTH)
    return tags or (_DEFAULT_LABEL,)


def _read_timezone(environment: Mapping[str, str]) -> str:
    timezone = environment.get("FMNIST_TIMEZONE") or "UTC"
    try:
        if timezone in _LOCAL_TIMEZONES or timezone.startswith(("posix/", "right/")):
            raise ValueError(timezone)
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise SettingsError(
            f"FMNIST_TIMEZONE: {timezone[:80]!r} is not a time zone; use a name like Europe/Berlin"
        ) from error
    return timezone


def _read_defaults(environment: Mapping[str, str]) -> Parameters:
    default = Parameters()
    approval = environment.get("FMNIST_APPROVAL") or "false"
    if approval not in {"true", "false"}:
        raise SettingsError(f"FMNIST_APPROVAL: {approval!r} is neither 'true' nor 'false'")
    candidates = environment.get("FMNIST_CANDIDATES") or str(default.candidates)
    if not candidates.isdecimal() or len(candidates) > 5:
        raise SettingsError(f"FMNIST_CANDIDATES: {candidates[:80]!r} is not a whole number from 1 to {MAX_CANDIDATES}")
    profile = environment.get("FMNIST_PROFILE") or default.profile
    try:
        return Parameters(profile, candidates=int(candidates), approval=approval == "true")
    except SettingsError as error:  # begins with the parameter's name
        name, _, fault = str(error).partition(":")
        raise SettingsError(f"FMNIST_{name.upper()}:{fault}") from error


def _read_datasets_folder(environment: Mapping[str, str]) -> Path:
    return _read_path(environment, "FMNIST_DATASETS", _read_home(environment) / "datasets")


def _list_names(folder: Path) -> list[str]:
    names = (path.stem for path in folder.glob("*.toml"))
    return sorted(name for name in names if DATASET_NAME.fullmatch(name))


def _read_home(environment: Mapping[str, str]) -> Path:
    beside_airflow = Path(environment.get("AIRFLOW_HOME") or "~/airflow") / "fmnist"
    return _read_path(environment, "FMNIST_HOME", PROJECT / "var" if _IS_CHECKOUT else beside_airflow)


def _read_path(environment: Mapping[str, str], name: str, default: Path) -> Path:
    value = environment.get(name)
    try:
        return Path(value or default).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:  # an unknown user, a zero byte, a name that is too long
        raise SettingsError(f"{name}: {value!r} is not a path: {error}") from error


@dataclass(frozen=True)
class Stage:
    """Hyperparameters of one training stage: the base model or fine-tuning."""

    epochs: int  # maximum; early stopping may end the training sooner
    learning_rate: float  # peak of the schedule
    shift: int = 0  # training images are shifted by up to this many pixels in each direction
    cutmix: float = 0.0  # share of training images that get a square of another image (arXiv:1905.04899)
    label_smoothing: float = 0.0  # share of each label spread over all classes (Szegedy 2016, arXiv:1512.00567)
    l2: float = 0.0  # factor of the L2 penalty on every kernel
    batch_size: int = 256  # maximum; see `model/mini_batches.py` for small datasets
    patience: int = 5  # epochs without a lower validation loss before early stopping


@dataclass(frozen=True)
class Profile:
    """A training budget: the network and its two training stages."""

    base: Stage
    tuning: Stage
    filters: tuple[int, int, int, int] = (16, 32, 64, 96)  # of the four stages of the network
    stem: int = 0  # filters of a convolution at full resolution before the stages; 0: none
    residual: tuple[int, ...] = (2, 4)  # stages with a second, residual convolution
    dropout: float = 0.05


PROFILES = {
    "quick": Profile(
        base=Stage(epochs=4, learning_rate=0.05, label_smoothing=0.1),
        tuning=Stage(epochs=4, learning_rate=0.015, l2=5e-5),
    ),
    "standard": Profile(
        base=Stage(epochs=8, learning_rate=0.05, shift=1, label_smoothing=0.1),
        tuning=Stage(epochs=10, learning_rate=0.015, shift=1, l2=5e-5),
    ),
    "thorough": Profile(
        base=Stage(epochs=12, learning_rate=0.05, shift=1, cutmix=0.5, label_smoothing=0.1),
        # At the high learning rates of the first half, the validation loss does not improve yet.
        tuning=Stage(epochs=23, learning_rate=0.015, shift=1, cutmix=0.5, l2=5e-5, patience=12),
        filters=(32, 64, 128, 192),
        stem=16,
        residual=(3,),
    ),
}


@dataclass(frozen=True)
class Parameters:
    """Parameters of one run: the fields of the trigger form."""

    profile: str = "standard"
    seed: int = 0
    candidates: int = 1  # base models to train, with consecutive seeds
    accuracy_threshold: float | None = None  # minimum test accuracy, 0 to 1; None: the value of the policy
    policy: Mapping[str, Any] = field(default_factory=dict)  # values that replace those of include/gates.toml
    approval: bool = False  # whether a candidate on hold waits for an approval
    force: bool = False  # train even if nothing changed

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise SettingsError(f"profile: {self.profile!r} is unknown; choose one of {', '.join(PROFILES)}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise SettingsError(f"seed: {self.seed!r} is not a whole number from 0 to {2**31 - 1}")
        if isinstance(self.candidates, bool) or not isinstance(self.candidates, int):
            raise SettingsError(f"candidates: {self.candidates!r} is not a whole number")
        if not 1 <= self.candidates <= MAX_CANDIDATES:
            raise SettingsError(f"candidates: {self.candidates} is not between 1 and {MAX_CANDIDATES}")
        threshold = self.accuracy_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float | None):
            raise SettingsError(f"accuracy_threshold: {threshold!r} is not a number")
        if threshold is not None and not 0 <= threshold <= 1:  # NaN fails this too
            raise SettingsError(f"accuracy_threshold: {threshold} is not between 0 and 1 (0.92 means 92%)")
        if not isinstance(self.policy, Mapping):
            raise SettingsError(
                f"policy: {self.policy!r} is not an object of sections, such as {{'accuracy': {{'min': 0.92}}}}"
            )
        if not isinstance(self.policy.get("accuracy", {}), Mapping):
            raise SettingsError(
                f"policy: accuracy: {self.policy['accuracy']!r} is not an object of values, such as {{'min': 0.92}}"
            )
        for name in ("approval", "force"):
            if not isinstance(value := getattr(self, name), bool):
                raise SettingsError(f"{name}: {value!r} is neither true nor false")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Parameters:
        """Build from a mapping. Raises :class:`SettingsError` for an unknown name or an invalid value."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise SettingsError(f"unknown parameters: {', '.join(unknown)}; use {', '.join(asdict(cls()))}")
        return replace(cls(), **values)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @property
    def seeds(self) -> list[int]:
        """One seed for each candidate."""
        return list(range(self.seed, self.seed + self.candidates))

    @property
    def policy_overrides(self) -> Mapping[str, Any]:
        """The policy values that this run replaces, including its accuracy threshold."""
        if self.accuracy_threshold is None:
            return self.policy
        accuracy = {**self.policy.get("accuracy", {}), "min": float(self.accuracy_threshold)}
        return {**self.policy, "accuracy": accuracy}

    @property
    def profile_config(self) -> Profile:
        """The profile of this run."""
        return PROFILES[self.profile]
