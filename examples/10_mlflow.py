"""Hooks: one logs a run to MLflow, in files of a folder, and one stops it when it is good enough.

    MLFLOW_ALLOW_FILE_STORE=true python examples/10_mlflow.py [FOLDER]

Needs mlflow or mlflow-skinny, whose newer versions take a folder only where that variable is set.
Nothing is downloaded and no server runs; `mlflow ui --backend-store-uri FOLDER` shows the runs.
"""

import sys
import tempfile

import torch
from mlflow.tracking import MlflowClient
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl


class ToMlflow(fl.Hook):
    """Logs metrics after each epoch, and the hash of the frozen part after each phase."""

    def __init__(self, folder, **parameters):
        self.client = MlflowClient(tracking_uri=f"file:{folder}")
        found = self.client.get_experiment_by_name("frostline")
        experiment = found.experiment_id if found else self.client.create_experiment("frostline")
        self.run_id = self.client.create_run(experiment).info.run_id
        for name, value in parameters.items():
            self.client.log_param(self.run_id, name, value)

    def on_epoch(self, training):
        record = training.history[-1]
        found = {f"train/{name}": value for name, value in record.train.items()}
        found |= {f"val/{name}": value for name, value in record.validation.headline().items()}
        for name, value in found.items():
            self.client.log_metric(self.run_id, name, value, step=record.epoch)

    def on_phase(self, training):
        record = training.phase_history[-1]
        self.client.set_tag(self.run_id, "frozen", record.frozen.fingerprint)
        self.client.set_tag(self.run_id, "ended", record.ended)

    def on_end(self):  # also where the run failed
        self.client.set_terminated(self.run_id)


class StopAt(fl.Hook):
    """Stops a run whose accuracy is high enough; it ends whole, with its best weights and proof."""

    def __init__(self, accuracy):
        self.accuracy = accuracy

    def on_epoch(self, training):
        found = training.history[-1].validation["accuracy"]
        if found >= self.accuracy:
            training.stop(f"accuracy {found:.2f}")


def main(folder):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
    model.head = nn.Linear(32, 2)
    fl.freeze(model, "body")
    log = ToMlflow(folder, frozen="body", lr=1e-2)
    run = fl.fit(model, points(200), points(50), epochs=50, lr=1e-2, hooks=[log, StopAt(0.8)])
    print(f"{len(run.history)} epochs of 50; {run.phases[-1].ended}")
    print(run.proof)
    logged = log.client.get_metric_history(log.run_id, "val/accuracy")
    print("MLflow has", [f"{metric.value:.2f}" for metric in logged])


def points(count):
    inputs = torch.randn(count, 8)
    return TensorDataset(inputs, (inputs[:, :2].sum(dim=1) > 0).long())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
