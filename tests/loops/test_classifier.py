"""`fl.FrozenClassifier` keeps scikit-learn's conventions and Frostline's promises."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from picture_classes import AnyWidth, classifier, pictures
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

import frostline as fl
from frostline.classifier import bases
from frostline.classifier.inputs import held_out
from frostline.data import image_samples
from phased_net import net, rows
from small_world import call, write_net, write_pictures

X, Y = pictures()


@pytest.fixture(autouse=True)
def _no_base_known() -> Iterator[None]:
    bases._KNOWN.clear()
    yield
    bases._KNOWN.clear()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


class Counted:
    """Calls of a function of `bases`, with what they gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.results: list[Any] = []
        real = getattr(bases, name)

        def counting(*given: Any, **named: Any) -> Any:
            self.results.append(real(*given, **named))
            return self.results[-1]

        monkeypatch.setattr(bases, name, counting)


# scikit-learn's conventions


@pytest.mark.filterwarnings("ignore:Skipping check check_array_api_input:UserWarning")
def test_all_checks_of_scikit_learn_pass_but_one() -> None:
    options = {"epochs": 15, "lr": 0.06, "val_fraction": 0, "device": "cpu", "features": "off"}
    torch.manual_seed(0)
    checked = fl.FrozenClassifier(AnyWidth(), freeze="body", **options)
    results = check_estimator(checked, on_fail=None, on_skip=None)
    failed = {str(result["check_name"]) for result in results if result["status"] == "failed"}
    # Which compares hashes by joblib, and those differ between a module and its own copy.
    assert failed == {"check_estimators_overwrite_params"}
    assert joblib.hash(torch.ones(1)) != joblib.hash(torch.ones(1).clone())
    assert len(results) > 50


def test_it_learns_and_answers_in_the_labels_that_it_was_given(store: Path) -> None:
    fitted = classifier(store).fit(X, Y)
    assert fitted.classes_.tolist() == ["blue", "green", "red"]
    assert set(fitted.predict(X)) <= {"blue", "green", "red"}
    assert fitted.score(X, Y) > 0.9
    assert np.allclose(fitted.predict_proba(X).sum(axis=1), 1)
    assert len(fitted.history_) == 4


def test_nothing_answers_before_it_is_fitted() -> None:
    asked = classifier()
    for answer in (asked.predict, asked.predict_proba, asked.score):
        with pytest.raises(NotFittedError):
            answer(X)
    for answer in (asked.verify, asked.to_module):
        with pytest.raises(NotFittedError):
            answer()


def test_numbers_as_searches_hand_them_out_are_settings() -> None:
    given = classifier(epochs=np.int64(1), lr=np.float64(0.1), batch_size=np.int64(8))
    assert len(given.fit(X, Y).history_) == 1


# The frozen part, once


def test_a_search_builds_the_base_once_and_computes_each_sample_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted, cut = Counted(monkeypatch, "extract"), Counted(monkeypatch, "cut")
    grid = {"frozenclassifier__lr": [0.01, 0.1], "frozenclassifier__weight_decay": [0.0, 0.1]}
    steps = make_pipeline(FunctionTransformer(), classifier(tmp_path))
    search = GridSearchCV(steps, grid, cv=3).fit(X, Y)
    assert search.best_params_["frozenclassifier__lr"] == 0.1
    assert search.best_score_ > 0.9
    assert sum(data.computed for data in extracted.results) == len(X)
    assert len(cut.results) == 1


def test_folds_in_threads_score_as_one_after_the_other(store: Path) -> None:
    alone = cross_val_score(classifier(store), X, Y, cv=3)
    with joblib.parallel_backend("threading", n_jobs=2):
        together = cross_val_score(classifier(store), X, Y, cv=3)
    assert alone.tolist() == together.tolist()


def test_another_network_is_another_base(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, asked = Counted(monkeypatch, "cut"), classifier(store)
    for change in (lambda _: None, lambda m: m.features[0].bias.data.add_(1)):
        change(asked.model)
        asked.fit(X, Y)
    asked.model.head[0].p = 0.5  # no tensor tells it
    asked.fit(X, Y)
    asked.fit(X, Y)
    assert len(cut.results) == 3


def test_exact_is_the_bits_of_the_plain_loop(tmp_path: Path) -> None:
    """Also where the last batch has one sample, of which kernels may make other bits."""
    inputs, labels = (tensor.numpy() for tensor in rows(52).tensors)
    options = {"precision": "exact", "epochs": 2, "batch_size": 8, "lr": 0.05}
    chances = [
        fl.FrozenClassifier(net(), features=where, device="cpu", **options)
        .fit(inputs, labels)
        .predict_proba(inputs)
        for where in (tmp_path, "off")
    ]
    assert np.array_equal(*chances)


def test_the_model_that_was_given_is_not_touched(store: Path) -> None:
    asked = classifier(store)
    before, names = fl.fingerprint(asked.model), list(vars(asked.model.features[0]))
    asked.fit(X, Y)
    assert fl.fingerprint(asked.model) == before
    assert list(vars(asked.model.features[0])) == names
    assert asked.model.features[0].weight.requires_grad


def test_a_fitted_classifier_proves_its_frozen_part(store: Path) -> None:
    fitted = classifier(store).fit(X, Y)
    assert str(fitted.verify()).startswith("7 frozen tensors")
    module = fitted.to_module()
    assert not module.training
    inputs = torch.stack([fitted.preprocessing(Image.fromarray(x)) for x in X[:5]])
    expected = fitted.predict_proba(X[:5])
    with torch.no_grad():
        assert np.allclose(module(inputs).softmax(dim=1).numpy(), expected, atol=2e-2)


# Reproducible


def test_the_random_state_decides_every_bit(store: Path) -> None:
    first, same, other = (
        classifier(store, random_state=seed).fit(X, Y).predict_proba(X)
        for seed in (3, np.int64(3), 4)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_generator_draws_another_seed_for_each_fit(store: Path) -> None:
    asked = classifier(store, random_state=np.random.RandomState(0), epochs=1)
    drawn = [asked.fit(X, Y).predict_proba(X) for _ in range(2)]
    assert not np.array_equal(*drawn)
    again = classifier(store, random_state=np.random.RandomState(0), epochs=1)
    assert np.array_equal(again.fit(X, Y).predict_proba(X), drawn[0])


def test_a_part_of_each_class_is_held_out_and_a_single_sample_is_trained_on() -> None:
    targets = np.array([0] * 10 + [1] * 2 + [2])
    train, val = held_out(targets, 0.2, 0)
    assert sorted(train + val) == list(range(13))
    assert targets[val].tolist() == [0, 0, 1]
    assert held_out(targets, 0, 0) == (list(range(13)), list(range(13)))
    assert held_out(targets, 0.2, 1) != (train, val)


# Files, folders, plans


def test_files_are_read_once_for_all_fits_unless_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = write_pictures(tmp_path / "photos", train=8, val=0), write_net(tmp_path)
    files = sorted((folder / "train").rglob("*.png"))
    labels, read = [file.parent.name for file in files], list[Path]()
    real = image_samples.file_digest
    monkeypatch.setattr(image_samples, "file_digest", lambda path: read.append(path) or real(path))
    options = {"weights": "none", "epochs": 1, "lr": 0.05, "device": "cpu"}
    asked = fl.FrozenClassifier(model, freeze="features", features=tmp_path / "f", **options)
    for _ in range(2):
        clone(asked).fit(files, labels)
    assert sorted(read) == files
    before, content = files[0].stat(), files[1].read_bytes()
    files[0].write_bytes(content[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps times
    clone(asked).fit(files, labels)
    assert read[len(files) :] == files[:1]


def test_files_and_a_folder_of_classes_are_taken(tmp_path: Path) -> None:
    folder, model = write_pictures(tmp_path / "photos", train=8, val=4), write_net(tmp_path)
    options = {"weights": "none", "epochs": 3, "lr": 0.05, "device": "cpu"}
    asked = fl.FrozenClassifier(model, freeze="features", features=tmp_path / "f", **options)
    files = sorted((folder / "train").rglob("*.png"))
    labels = [file.parent.name for file in files]
    by_files = clone(asked).fit(files, labels)
    assert by_files.classes_.tolist() == ["dark", "light"]
    assert by_files.score(files, labels) > 0.9
    numbered = clone(asked).fit(files, [int(label == "light") for label in labels])
    named = {"dark": "0", "light": "1"}
    for part in ("train", "val"):
        for name, number in named.items():
            (folder / part / name).rename(folder / part / number)
    assert numbered.score(folder) > 0.9  # of folders by the text of their labels
    for part in ("train", "val"):
        for name, number in named.items():
            (folder / part / number).rename(folder / part / name)
    by_folder = asked.fit(folder)
    assert by_folder.score(folder) > 0.9
    assert by_folder.predict([str(file) for file in files]).tolist() == labels


def test_a_plan_trains_the_network_in_its_phases(store: Path) -> None:
    plan = fl.Plan([fl.Phase(train="head", epochs=2), fl.Phase(train="all", epochs=1, lr=0.01)])
    asked = classifier(store, plan=plan).set_params(freeze=None)
    fitted = asked.fit(X, Y)
    assert [record.phase for record in fitted.history_] == [1, 1, 2]
    assert fitted.score(X, Y) > 0.9


def test_a_network_without_a_frost_line_is_trained_as_a_whole(store: Path) -> None:
    fitted = classifier(store).set_params(freeze=None, train="features.0 | head").fit(X, Y)
    assert fitted.score(X, Y) > 0.9


def test_pictures_in_floats_and_in_grey_are_pictures() -> None:
    fitted = classifier().fit(X, Y)
    assert np.array_equal(fitted.predict_proba(X / 255.0), fitted.predict_proba(X))
    assert fitted.predict(X[..., 0]).shape == (48,)
    ready = np.stack([fitted.preprocessing(Image.fromarray(x)).numpy() for x in X])
    assert np.array_equal(fitted.predict_proba(ready), fitted.predict_proba(X))


# Kept and shared


@pytest.mark.parametrize("through", ["pickle", "joblib"])
def test_a_copy_from_a_file_answers_alike_and_holds_no_base(tmp_path: Path, through: str) -> None:
    model = write_net(tmp_path)
    options = {"weights": "none", "epochs": 1, "device": "cpu"}
    fitted = fl.FrozenClassifier(model, features=tmp_path / "f", **options).fit(X, Y)
    file = io.BytesIO()
    (pickle if through == "pickle" else joblib).dump(fitted, file)
    weights = fitted.to_module().features[0].weight.detach().numpy().tobytes()
    assert weights not in file.getvalue()
    file.seek(0)
    bases._KNOWN.clear()
    found = (pickle if through == "pickle" else joblib).load(file)
    assert np.array_equal(found.predict_proba(X), fitted.predict_proba(X))


def test_a_base_that_is_another_one_now_is_refused(tmp_path: Path) -> None:
    model = write_net(tmp_path)
    options = {"weights": "none", "epochs": 1, "device": "cpu"}
    fitted = fl.FrozenClassifier(model, features=tmp_path / "f", **options).fit(X, Y)
    found = pickle.loads(pickle.dumps(fitted))
    file = tmp_path / "small_net.py"
    file.write_text(file.read_text().replace("Conv2d(3, 8, 3)", "Conv2d(3, 8, 5)"))
    told = "the frozen part of this classifier is not what it was fitted on"
    for answer in (lambda: found.predict(X), found.verify):
        with pytest.raises(fl.DriftError, match=told):
            answer()


def test_the_run_folder_that_it_saves_predicts_as_it_does(tmp_path: Path) -> None:
    folder, model = write_pictures(tmp_path / "photos", train=8, val=4), write_net(tmp_path)
    options = {"weights": "none", "epochs": 3, "lr": 0.05, "device": "cpu", "precision": 1e-9}
    fitted = fl.FrozenClassifier(model, features=tmp_path / "f", **options).fit(folder)
    fitted.save(tmp_path / "run")
    files = sorted((folder / "val").rglob("*.png"))
    answered = call("predict", tmp_path / "run", *files, "--json").json
    assert [one["class"] for one in answered] == fitted.predict(files).tolist()
    expected = fitted.predict_proba(files).max(axis=1)
    assert [one["probability"] for one in answered] == pytest.approx(expected, abs=1e-6)
    assert call("verify", tmp_path / "run").status == 0
    assert call("report", tmp_path / "run", "--out", tmp_path / "page.html").status == 0
    out = tmp_path / "model.safetensors"
    assert call("export", tmp_path / "run", "--to", "safetensors", "--out", out).status == 0
    with pytest.raises(fl.OutputError, match="already holds a run"):
        fitted.save(tmp_path / "run")


def test_the_delta_that_it_saves_goes_onto_its_base(store: Path, tmp_path: Path) -> None:
    fitted = classifier(store).fit(X, Y)
    fitted.save_delta(tmp_path / "delta.safetensors")
    delta = fl.load_delta(fitted.to_module(), tmp_path / "delta.safetensors")
    assert set(delta.tensors) == {"head.1.weight", "head.1.bias"}


# What is refused


@pytest.mark.parametrize(
    ("options", "given", "error", "told"),
    [
        (
            {},
            X.reshape(48, -1),
            fl.DataError,
            r"X is uint8 \(\d+, 768\), and the network takes pictures. Give them",
        ),
        ({}, X * 2.0, fl.DataError, "X holds float64 from .*floats from 0 to 1. Scale them"),
        ({"preprocessing": None}, ["a.png"] * 48, fl.DataError, "X lists files, and the network"),
        ({"model": 3}, X, fl.ConfigError, "model is an int. Give a name, as 'mobilenet_v2'"),
        ({"lr": -1.0}, X, fl.ConfigError, "lr=-1.0: input should be greater than 0"),
        ({"freeze": "featurs"}, X, fl.SelectorError, "Nearest: features"),
        ({"train": "head"}, X, fl.ConfigError, "got both `freeze` and `train`"),
    ],
)
def test_what_it_cannot_use_is_refused_with_what_to_do(
    options: dict[str, Any], given: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        classifier().set_params(**options).fit(given, Y)


def test_labels_that_are_all_one_or_missing_are_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"y has one class, 'red'.*two classes or more"):
        classifier().fit(X, ["red"] * 48)
    with pytest.raises(fl.ConfigError, match="X lists files or texts, and y is None"):
        classifier().fit(["a.png", "b.png"])


def test_a_folder_with_labels_and_answers_for_a_folder_are_refused(store: Path) -> None:
    with pytest.raises(fl.ConfigError, match=r"X is the folder photos.*Leave y out"):
        classifier().fit("photos", Y)
    with pytest.raises(fl.ConfigError, match="X is 'photos', and answers are asked for a list"):
        classifier(store, epochs=1).fit(X, Y).predict("photos")


def test_a_missing_scikit_learn_is_named_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)  # importing it is an error
    monkeypatch.delitem(sys.modules, "frostline.classifier.estimator")
    with pytest.raises(ImportError, match=r"needs scikit-learn.*'frostline\[sklearn\]'"):
        importlib.import_module("frostline.classifier.estimator")
