"""A classifier by scikit-learn's conventions, whose frozen part is computed once."""

from frostline.classifier.estimator import FrozenClassifier as FrozenClassifier
