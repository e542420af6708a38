"""Frostline: freeze any part of a pretrained PyTorch model and train the rest."""
