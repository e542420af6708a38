"""`fl.FrozenClassifier`: a frozen network with a trained head, by scikit-learn's conventions."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from frostline.classifier.bases import BaseSpec
from frostline.classifier.fitted import Fitted, Parts, fit_on_features, fit_whole
from frostline.classifier.inputs import Given, held_out, is_listed
from frostline.classifier.saving import write_run
from frostline.config import (
    DataSettings,
    FeatureSettings,
    FreezeSettings,
    ModelSettings,
    RunSettings,
)
from frostline.data import ImageSet, read_set, read_splits
from frostline.deltas import save_delta
from frostline.errors import ConfigError, CutError, a_type
from frostline.fitting import check_settings
from frostline.freezing import Proof
from frostline.plans import Plan
from frostline.preprocessing import Preprocessing
from frostline.recipe import Recipe
from frostline.world import refuse_several

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        check_array,
        check_consistent_length,
        check_is_fitted,
        column_or_1d,
        validate_data,
    )
except ImportError as error:
    raise ImportError(
        "fl.FrozenClassifier needs scikit-learn 1.6 or later: pip install 'frostline[sklearn]'"
    ) from error

_NO_TARGETS = object()
_RECIPE = frozenset(Recipe.model_fields) - {"seed", "lean", "keep", "sync_norm"}


@final
class FrozenClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """A pretrained network with a frozen part and a trained rest, as an estimator.

    Works in pipelines and searches. What is frozen is computed once for each sample, however many
    settings are tried on however many folds: features are found by the content of the sample, and
    the base, which no fit changes, is built and cut once in a process. Fits with the same
    `random_state` on the same machine end at the same bits.

    `X` is a list of picture files (or of texts, for a network that reads texts); an array of
    pictures, `(samples, height, width)` or with 3 channels behind, in 8 bits or floats from 0 to
    1; or an array as the network takes it. `fit` and `score` also take a folder, with `y` left
    out: one folder for each class, divided into train and val or not.

    Args:
        model: `mobilenet_v2`, `timm:NAME`, `hf:FOLDER`, `file.py:function`, or a module, which is
            copied. Its classifier is replaced unless `on` is `keep`.
        weights: of a model by name: `DEFAULT`, `none` or a file.
        freeze, train: one selector of either; by default all but the head is frozen.
        norm: of norms that are frozen, as `fl.freeze` has it.
        plan: phases to train in; the network is then trained as a whole by `fl.fit`.
        on, head: where the new head goes (`classifier`, `logits`, `keep`), and the widths of its
            hidden layers.
        preprocessing: of a module that takes pictures.
        val_fraction: of each class, held out to choose the best epoch by; 0 trains on all, and
            judges epochs by them.
        features: folder of the feature store; `auto` is the user's own, `off` computes all in
            each epoch.
        random_state: seed of the head, the held-out part and the order; an int is reproducible.
        epochs, ..., patience: as in `fl.Recipe`.

    Attributes:
        classes_: the labels of `y`, sorted; the columns of `predict_proba`.
        history_: a record for each epoch.
        n_features_in_: of rows of numbers.

    Example:
        >>> features, labels = images.numpy(), ["ant", "bee"] * 8
        >>> classifier = fl.FrozenClassifier(model, epochs=2, batch_size=8, features="features")
        >>> classifier.fit(features, labels).predict(features[:3]).shape
        (3,)
        >>> print(classifier.verify())
        7 frozen tensors (1.03 KB) are bit for bit as they were
    """

    def __init__(
        self,
        model: str | nn.Module = "mobilenet_v2",
        *,
        weights: str = "DEFAULT",
        freeze: str | None = None,
        train: str | None = None,
        norm: str = "hold",
        plan: Plan | None = None,
        on: str = "classifier",
        head: Sequence[int] = (),
        preprocessing: Preprocessing | None = None,
        val_fraction: float = 0.2,
        features: str | Path = "auto",
        batch_size: int = 32,
        device: str = "auto",
        random_state: Any = 0,
        epochs: int = 10,
        lr: float | None = None,
        optimizer: str = "adamw",
        weight_decay: float = 0.01,
        momentum: float = 0.9,
        schedule: str = "cosine",
        warmup: float = 0.5,
        layer_decay: float = 1.0,
        clip_norm: float | None = None,
        label_smoothing: float = 0.0,
        class_weights: str = "none",
        precision: str | float = "auto",
        monitor: str = "auto",
        patience: int | None = None,
    ) -> None:
        # Nothing else may happen here: clone() compares what went in with what is there.
        self.model = model
        self.weights = weights
        self.freeze = freeze
        self.train = train
        self.norm = norm
        self.plan = plan
        self.on = on
        self.head = head
        self.preprocessing = preprocessing
        self.val_fraction = val_fraction
        self.features = features
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state
        self.epochs = epochs
        self.lr = lr
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.schedule = schedule
        self.warmup = warmup
        self.layer_decay = layer_decay
        self.clip_norm = clip_norm
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.precision = precision
        self.monitor = monitor
        self.patience = patience

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803 - scikit-learn's names
        """Train on `X` with labels `y`, or on a folder.

        Raises:
            ConfigError: a setting is out of its range, or all labels are one.
            DataError: the network takes other data.
            ValueError: as scikit-learn's own checks of `X` and `y`.
            FrostlineError: as `fl.fit`.
        """
        refuse_several("FrozenClassifier")
        seed = _seed(self.random_state)
        parts: Parts | None = None
        if isinstance(X, str | PathLike):
            if y is not None:
                raise ConfigError(
                    f"X is the folder {X}, whose folders are the classes, and y is there too. "
                    "Leave y out, or give a list of files."
                )
            data, labels, parts = _divided(Path(X), self.val_fraction, seed)
        else:
            data, labels = self._checked(X, y, reset=True), column_or_1d(y, warn=True)
            check_classification_targets(labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ConfigError(
                f"y has one class, {self.classes_.tolist()[0]!r}, and there is nothing to tell "
                "apart. Give samples of two classes or more."
            )
        spec, given = self._spec(seed), Given(data, targets)
        parts = parts or held_out(targets, self.val_fraction, seed)
        self._fitted = self._fit(spec, given, parts)
        self.history_ = self._fitted.run.history
        return self

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """The most probable class of each sample, as in `classes_`."""
        chances = self.predict_proba(X)
        found: NDArray[Any] = self.classes_[chances.argmax(axis=1)]
        return found

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """The probability of each class, `(samples, classes)`.

        Raises:
            NotFittedError: `fit` was not called.
            DriftError: the frozen part is not what the classifier was fitted on.
        """
        check_is_fitted(self)
        data = self._checked(X, reset=False)
        given = Given(data, np.zeros(len(data), np.int64))
        chances: NDArray[np.float64] = self._fitted.logits(given).double().softmax(dim=1).numpy()
        return chances

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:  # noqa: N803
        """Accuracy on `X`; of a folder on its test or val part, or all where it is not divided."""
        if isinstance(X, str | PathLike):
            check_is_fitted(self)
            images = read_set(Path(X), classes=tuple(map(str, self.classes_)))
            X, y = _listed(images)[0], self.classes_[[s.label for s in images.samples]]  # noqa: N806
        return float(super().score(X, y, sample_weight))

    def verify(self) -> Proof:
        """Prove that the frozen part is what it was when the classifier was fitted.

        Raises:
            NotFittedError: `fit` was not called.
            DriftError: it is not.
        """
        check_is_fitted(self)
        return self._fitted.whole()[1]

    def to_module(self) -> nn.Module:
        """The network with what was trained, in eval mode and frozen as asked; a copy.

        Raises:
            NotFittedError, DriftError: as `verify`.
        """
        check_is_fitted(self)
        return self._fitted.whole()[0].model

    def save(self, out: str | Path) -> None:
        """Write a run folder, for `fl.open_run`, `frostline predict`, `evaluate` and `export`.

        Raises:
            NotFittedError, DriftError: as `verify`.
            OutputError: something is there, or it cannot be written.
        """
        check_is_fitted(self)
        write_run(self._fitted, Path(out))

    def save_delta(self, path: str | Path) -> None:
        """Write what was trained, with the fingerprint of its base; see `fl.save_delta`.

        Raises:
            NotFittedError, DriftError: as `verify`.
            OutputError: it cannot be written.
        """
        save_delta(self.to_module(), path)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = isinstance(self.model, str)
        return tags

    def _fit(self, spec: BaseSpec, given: Given, parts: Parts) -> Fitted:
        settings = spec.settings
        recipe = settings.training
        # Rates by stage are those of the whole network; the plain loop's last bits can depend on
        # how many rows a batch has, which `fl.fit` looks after.
        needs_all = recipe.layer_decay != 1 or recipe.precision == "exact"
        if needs_all or settings.plan or settings.features.store == "off":
            return fit_whole(spec, given, parts)
        try:
            return fit_on_features(spec, given, parts)
        except CutError:
            return fit_whole(spec, given, parts)

    def _checked(self, X: Any, y: Any = _NO_TARGETS, *, reset: bool) -> Any:  # noqa: N803
        """Numbers as a checked array; a list of names as it is."""
        if isinstance(X, str | PathLike):
            raise ConfigError(
                f"X is {str(X)!r}, and answers are asked for a list. Give the files: "
                f"sorted(Path({str(X)!r}).rglob('*.jpg'))."
            )
        if is_listed(X):
            if y is not _NO_TARGETS:
                if y is None:
                    raise ConfigError("X lists files or texts, and y is None. Give their labels.")
                check_consistent_length(X, y)
            return list(X)
        given = () if y is _NO_TARGETS else (y,)
        if getattr(X, "ndim", 2) > 2:  # whose second size is no number of features
            check_consistent_length(X, *given)
            return check_array(X, allow_nd=True, estimator=self, input_name="X")
        found = validate_data(self, X, *given, reset=reset)
        return found[0] if given else found

    def _spec(self, seed: int) -> BaseSpec:
        asked = {name: _plain(getattr(self, name)) for name in _RECIPE}
        settings = RunSettings(
            model=self._model_settings(),
            data=DataSettings(
                val_fraction=self.val_fraction or DataSettings().val_fraction,
                batch_size=_plain(self.batch_size),
                classes=tuple(map(str, self.classes_)),
            ),
            freeze=FreezeSettings(freeze=self.freeze, train=self.train, norm=_plain(self.norm)),
            training=Recipe(**asked, seed=seed),
            features=FeatureSettings(store=str(self.features)),
            plan=self.plan.phases if self.plan else (),
            device=self.device,
        )
        check_settings(settings)
        module = self.model if isinstance(self.model, nn.Module) else None
        return BaseSpec(settings, module, self.preprocessing)

    def _model_settings(self) -> ModelSettings:
        hidden = (self.head,) if isinstance(self.head, int) else tuple(self.head)
        if isinstance(self.model, str):
            asked = ModelSettings(name=self.model, weights=self.weights)
        elif isinstance(self.model, nn.Module):
            asked = ModelSettings.from_python(type(self.model).__name__)
        else:
            raise ConfigError(
                f"model is {a_type(self.model)}. Give a name, as 'mobilenet_v2', or a module."
            )
        return ModelSettings(**{**dict(asked), "on": self.on, "hidden": hidden})


def _plain(value: Any) -> Any:
    """A number as Python has it; searches hand out NumPy's."""
    return value.item() if isinstance(value, np.generic) else value


def _seed(state: Any) -> int:
    """An int as it is; of None and of generators one that is drawn."""
    if isinstance(state, int | np.integer):
        return int(state)
    drawn: int = check_random_state(state).randint(2**31 - 1)
    return drawn


def _divided(folder: Path, fraction: float, seed: int) -> tuple[list[str], list[str], Parts]:
    """Files of a folder, their classes, and the places to train on and to validate on."""
    splits = read_splits(folder, val_fraction=fraction or DataSettings().val_fraction, seed=seed)
    files, labels = (a + b for a, b in zip(*map(_listed, (splits.train, splits.val)), strict=True))
    count = len(splits.train)
    return files, labels, (range(count), range(count, len(files)))


def _listed(images: ImageSet) -> tuple[list[str], list[str]]:
    return [str(s.path) for s in images.samples], [images.class_of(s) for s in images.samples]
