"""All that can be configured: where things live, what a run asks for, and how long a profile trains.

Standard library only and no side effects, so that reading settings costs nothing when a DAG file is parsed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.text import make_printable

PROJECT = Path(__file__).resolve().parents[1]
INCLUDE = PROJECT / "include"
DAG_ID = "fmnist_retrain"
WATCH_ID = "fmnist_watch"
ROLLBACK_ID = "fmnist_rollback"
WITHDRAW_ID = "fmnist_withdraw"
# Its event is a new champion. A name alone: for a URI, Airflow would load every provider's handlers with a DAG file.
CHAMPION_ASSET = "fmnist_champion_model"
TASK_LIMIT = timedelta(hours=6)  # a task that takes longer is stopped
APPROVAL_LIMIT = timedelta(days=3)  # a person who has not decided by then has rejected
RUN_LIMIT = APPROVAL_LIMIT + 2 * TASK_LIMIT  # a run that takes longer is stopped
RECENT = timedelta(days=7)  # how far back failures without an alert are looked for
MOST_CANDIDATES = 16
SHELL = "(shell)"  # ends the name of a user who acts from one
LONGEST_REASON = 500  # characters of what a user gives for a decision
# For an integer among the parameters of a DAG: in newer drafts of JSON Schema 1.0 is one too.
EXACT_TYPE: Mapping[str, Any] = {"$schema": "http://json-schema.org/draft-04/schema#"}


@dataclass(frozen=True)
class Settings:
    """Where the line finds and leaves things. Each field is one environment variable, ``FMNIST_<FIELD>``."""

    home: Path  # everything that is written locally lies below
    store: str  # URI of the object store: file:///folder or s3://bucket?endpoint=https://host:port
    dataset: Path  # the declaration (TOML) of the dataset to train on
    data_dir: Path | None  # a folder with the dataset's files, tried after the cache
    overdue: timedelta  # FMNIST_OVERDUE_DAYS without a run that ended well are too many
    settle: timedelta  # FMNIST_SETTLE_SECONDS that a file in incoming/ of a folder must not have changed
    predict_prefix: str  # where in the store every new champion finds images to answer; empty: nowhere
    instance: str  # which installation this is, for the subjects of alerts; empty: there is only one
    approval: bool  # whether a verdict of "hold" waits for a person in scheduled runs

    @property
    def cache(self) -> Path:
        """Folder in which downloaded dataset files are kept."""
        return self.home / "cache"

    @property
    def training_lock(self) -> Path:
        """File that a training holds locked, so that there is one at a time on a machine."""
        return self.home / "training.lock"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings; unset or empty variables take the defaults below the project folder."""
        home = _read_home(environment)
        days = environment.get("FMNIST_OVERDUE_DAYS") or "8"
        if not days.isdecimal() or len(days) > 5 or not int(days):
            raise SettingsError(f"FMNIST_OVERDUE_DAYS: {days!r} is no number of days")
        approval = environment.get("FMNIST_APPROVAL") or "false"
        if approval not in {"true", "false"}:
            raise SettingsError(f"FMNIST_APPROVAL: {approval!r} is neither true nor false")
        seconds = environment.get("FMNIST_SETTLE_SECONDS") or "60"
        if not seconds.isdecimal() or len(seconds) > 6:
            raise SettingsError(f"FMNIST_SETTLE_SECONDS: {seconds!r} is no number of seconds")
        return cls(
            home=home,
            store=read_store_uri(environment),
            dataset=_read_path(environment, "FMNIST_DATASET", INCLUDE / "datasets" / "fashion_mnist.toml"),
            data_dir=_read_path(environment, "FMNIST_DATA_DIR", home) if environment.get("FMNIST_DATA_DIR") else None,
            overdue=timedelta(days=int(days)),
            settle=timedelta(seconds=int(seconds)),
            predict_prefix=environment.get("FMNIST_PREDICT_PREFIX", ""),
            instance=read_instance(environment),
            approval=approval == "true",
        )


def read_store_uri(environment: Mapping[str, str] = os.environ) -> str:
    """The store alone: alerts about a fault in another setting need it."""
    return environment.get("FMNIST_STORE") or (_read_home(environment) / "store").as_uri()


def read_instance(environment: Mapping[str, str] = os.environ) -> str:
    """The name of this installation alone, like :func:`read_store_uri`."""
    return make_printable(environment.get("FMNIST_INSTANCE", ""))


def _read_home(environment: Mapping[str, str]) -> Path:
    return _read_path(environment, "FMNIST_HOME", PROJECT / "var")


def _read_path(environment: Mapping[str, str], name: str, default: Path) -> Path:
    given = environment.get(name)
    try:
        return Path(given or default).expanduser().resolve()
    except (RuntimeError, ValueError) as error:  # an unknown user, a zero byte
        raise SettingsError(f"{name}: {given!r} is no path: {error}") from error


@dataclass(frozen=True)
class Stage:
    """One fitting, of the base model or of fine-tuning. Epochs are passes over the training split."""

    epochs: int  # at most; early stopping may end sooner
    learning_rate: float  # peak of the schedule
    shift: int = 0  # training images move by up to this many pixels in each direction
    cut_mix: float = 0.0  # share of training images that get a square of another, and its share of the target
    smoothing: float = 0.0  # share of each label that is spread over all classes (Szegedy 2016, arXiv:1512.00567)
    l2: float = 0.0  # factor of the L2 penalty on every kernel
    batch_size: int = 256  # at most; see `model/batches.py` for small datasets
    patience: int = 5  # epochs without a better validation loss before early stopping


@dataclass(frozen=True)
class Profile:
    """How much training a run gets, and of which network."""

    base: Stage
    tuning: Stage
    filters: tuple[int, int, int, int] = (16, 32, 64, 96)  # of the four stages of the network
    stem: int = 0  # filters of a convolution before them, of all places of the image; 0: there is none
    residual: tuple[int, ...] = (2, 4)  # stages that have a second, residual convolution
    dropout: float = 0.05


PROFILES = {
    "quick": Profile(
        base=Stage(epochs=4, learning_rate=0.05, smoothing=0.1), tuning=Stage(epochs=4, learning_rate=0.015, l2=5e-5)
    ),
    "standard": Profile(
        base=Stage(epochs=8, learning_rate=0.05, shift=1, smoothing=0.1),
        tuning=Stage(epochs=10, learning_rate=0.015, shift=1, l2=5e-5),
    ),
    "thorough": Profile(
        base=Stage(epochs=12, learning_rate=0.05, shift=1, cut_mix=0.5, smoothing=0.1),
        # The first half of the schedule, at high rates, gains nothing yet, and is no reason to stop.
        tuning=Stage(epochs=23, learning_rate=0.015, shift=1, cut_mix=0.5, l2=5e-5, patience=12),
        filters=(32, 64, 128, 192),
        stem=16,
        residual=(3,),
    ),
}


@dataclass(frozen=True)
class Parameters:
    """What one run asks for: the fields of the trigger form."""

    profile: str = "standard"
    seed: int = 0
    candidates: int = 1
    accuracy_threshold: float | None = None  # None asks what the policy asks, include/gates.toml
    policy: Mapping[str, Any] = field(default_factory=dict)  # sections of the policy that this run asks otherwise
    approval: bool = False  # whether a verdict of "hold" waits for a person
    force: bool = False

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise SettingsError(f"profile: {self.profile!r} is unknown; choose one of {', '.join(PROFILES)}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise SettingsError(f"seed: {self.seed!r} is not a whole number from 0 to {2**31 - 1}")
        if isinstance(self.candidates, bool) or not isinstance(self.candidates, int):
            raise SettingsError(f"candidates: {self.candidates!r} is not a whole number")
        if not 1 <= self.candidates <= MOST_CANDIDATES:
            raise SettingsError(f"candidates: {self.candidates} lies outside 1..{MOST_CANDIDATES}")
        threshold = self.accuracy_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float | None):
            raise SettingsError(f"accuracy_threshold: {threshold!r} is not a number")
        if threshold is not None and not 0 <= threshold <= 1:  # NaN fails this too
            raise SettingsError(f"accuracy_threshold: {threshold} lies outside 0..1 (0.92 means 92 %)")
        if not isinstance(self.policy, Mapping):
            raise SettingsError(f"policy: {self.policy!r} is no mapping from sections to values")
        if not isinstance(self.policy.get("accuracy", {}), Mapping):
            raise SettingsError(f"policy: accuracy: {self.policy['accuracy']!r} is no mapping from names to values")
        for name in ("approval", "force"):
            if not isinstance(value := getattr(self, name), bool):
                raise SettingsError(f"{name}: {value!r} is neither true nor false")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Parameters:
        """Build from a mapping; a name that is no field raises :class:`SettingsError`."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise SettingsError(f"unknown parameter {', '.join(unknown)}; known are {', '.join(asdict(cls()))}")
        return replace(cls(), **values)

    def as_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @property
    def seeds(self) -> list[int]:
        """One seed for each candidate."""
        return list(range(self.seed, self.seed + self.candidates))

    @property
    def policy_changes(self) -> Mapping[str, Any]:
        """What this run asks otherwise than the policy; a threshold of its own goes before."""
        if self.accuracy_threshold is None:
            return self.policy
        accuracy = {**self.policy.get("accuracy", {}), "at_least": float(self.accuracy_threshold)}
        return {**self.policy, "accuracy": accuracy}

    @property
    def training(self) -> Profile:
        """The profile that the name stands for."""
        return PROFILES[self.profile]
