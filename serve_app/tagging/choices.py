"""The values that a request may choose from: plain types, which the client imports too."""

from typing import Literal

Score = Literal["sigmoid", "logit", "calibrated", "margin", "softmax"]
"""What a confidence is, and what thresholds are compared with."""
SortBy = Literal["confidence", "alphabetical"]
Parents = Literal["independent", "propagate", "suppress"]
"""How a parent's score and its children's scores depend on each other."""
Quality = Literal["standard", "high"]
"""`high` also looks at overlapping tiles of an image."""
