"""The linear probe: what it learns, and the penalty that leaving each sample out chooses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from frostline.probing import linear
from frostline.probing.linear import fit_probe


def data(samples: int, width: int) -> tuple[Tensor, Tensor]:
    """Features of different sizes and means, and two noisy targets of them."""
    draw = torch.Generator().manual_seed(samples)
    features = torch.randn(samples, width, generator=draw) * torch.linspace(0.1, 5, width) + 3
    wanted = features[:, :2] + 0.5 * torch.randn(samples, 2, generator=draw)
    return features, wanted


def by_hand(features: Tensor, wanted: Tensor, given: Tensor, penalty: float) -> Tensor:
    """Answers of the normal equations on standardised features, with an unpenalised bias."""
    mean, scale = features.double().mean(0), features.double().std(0, correction=0)
    inputs = (features.double() - mean) / scale
    left = inputs.T @ inputs + penalty * len(inputs) * torch.eye(inputs.shape[1]).double()
    weight = torch.linalg.solve(left, inputs.T @ (wanted - wanted.mean(0)).double())
    return (given.double() - mean) / scale @ weight + wanted.double().mean(0)


@pytest.mark.parametrize(("samples", "width"), [(40, 6), (12, 30)])
def test_it_solves_the_normal_equations(samples: int, width: int) -> None:
    features, wanted = data(samples, width)
    found = fit_probe(features, wanted)
    other = data(7, width)[0]
    torch.testing.assert_close(found(other), by_hand(features, wanted, other, found.penalty))


@pytest.mark.parametrize(("samples", "width"), [(20, 5), (10, 16)])
def test_the_error_of_each_penalty_is_that_of_probes_fitted_without_the_sample(
    samples: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the mean and scale of all samples, which the closed form keeps."""
    features, wanted = data(samples, width)
    told: dict[float, float] = {}
    inner = linear._left_out_error

    def kept(*given: object) -> float:
        told[given[-1] / samples] = found = inner(*given)  # type: ignore[operator, arg-type]
        return found

    monkeypatch.setattr(linear, "_left_out_error", kept)
    fit_probe(features, wanted)
    mean, scale = features.double().mean(0), features.double().std(0, correction=0)
    inputs = torch.cat([(features.double() - mean) / scale, torch.ones(samples, 1).double()], 1)
    for penalty in (0.01, 1.0, 100.0):
        damp = torch.eye(width + 1).double() * penalty * samples
        damp[-1, -1] = 0  # the bias is free
        errors = []
        for out in range(samples):
            rest = torch.arange(samples) != out
            left = inputs[rest].T @ inputs[rest] + damp
            weight = torch.linalg.solve(left, inputs[rest].T @ wanted[rest].double())
            errors.append((wanted[out].double() - inputs[out] @ weight).square())
        expected = torch.stack(errors).mean().item()
        assert told[penalty] == pytest.approx(expected, rel=1e-6)


def test_noise_alone_is_shrunk_to_the_mean() -> None:
    draw = torch.Generator().manual_seed(1)
    features, wanted = torch.randn(60, 20, generator=draw), torch.randn(60, 1, generator=draw)
    assert fit_probe(features, wanted).penalty >= 10


def test_a_feature_of_one_value_for_all_does_no_harm() -> None:
    features, wanted = data(20, 4)
    features[:, 3] = 7.0
    answers = fit_probe(features, wanted)(features + torch.tensor([0, 0, 0, 9.0]))
    assert bool(answers.isfinite().all())
    torch.testing.assert_close(answers, fit_probe(features[:, :3], wanted)(features[:, :3]))


def test_of_many_samples_as_many_are_taken_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    features, wanted = data(41, 3)
    monkeypatch.setattr(linear, "_MOST_SAMPLES", 21)
    torch.testing.assert_close(
        fit_probe(features, wanted).weight, fit_probe(features[::2], wanted[::2]).weight
    )
