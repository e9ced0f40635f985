"""How far measurements agree with a reference, over patients: bias, limits, error, correlation."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

_LIMIT = 1.96
"""Standard deviations on either side of the bias, between which 95 % of differences lie."""


@dataclass(frozen=True)
class Estimate:
    """A statistic with its confidence interval; NaN where there are too few patients for it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "unknown"
        interval = f" ({self.low:.2f} to {self.high:.2f})" if math.isfinite(self.low) else ""
        return f"{self.value:.2f}{interval}"


@dataclass(frozen=True)
class Agreement:
    """Of measurements with a reference, in their unit; differences are measured - reference.

    Attributes:
        count: of patients.
        bias: the mean difference.
        lower: limit of agreement, 1.96 standard deviations of the differences below the bias.
        upper: the same above it.
        mae: the mean absolute difference.
        correlation: Pearson's.
    """

    count: int
    bias: Estimate
    lower: Estimate
    upper: Estimate
    mae: Estimate
    correlation: Estimate

    @property
    def limits(self) -> str:
        """Of agreement, in words."""
        if math.isnan(self.lower.value):
            return "unknown"
        return f"{self.lower.value:.1f} to {self.upper.value:.1f}"


def agreement(
    measured: Float[np.ndarray, "n"],
    reference: Float[np.ndarray, "n"],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Compare measurements of the same patients, with bootstrap intervals over patients.

    Args:
        measured: of each patient.
        reference: of the same patients; pairs in which either is NaN are left out.
        level: of the confidence intervals, which are percentiles of the resampled statistics.
        resamples: of the patients.
        seed: of the resampling.

    Raises:
        ValueError: there is no pair.

    Source: J. M. Bland, D. G. Altman, "Statistical methods for assessing agreement between two
    methods of clinical measurement", Lancet 327, 307-310, 1986.
    """
    known = np.isfinite(measured) & np.isfinite(reference)
    measured, reference = measured[known], reference[known]
    count = len(measured)
    if not count:
        raise ValueError("there is no patient with both a measurement and a reference")
    values = _statistics(measured, reference)
    low, high = np.full((2, len(values)), np.nan)
    if count > 1:
        with warnings.catch_warnings():
            # Of few patients some resamples have no correlation; its interval is NaN then.
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (measured, reference),
                _statistics,
                n_resamples=resamples,
                paired=True,
                vectorized=True,
                confidence_level=level,
                method="percentile",
                rng=np.random.default_rng(seed),
            ).confidence_interval
        low, high = found.low, found.high
    estimates = [Estimate(*map(float, each)) for each in zip(values, low, high, strict=True)]
    return Agreement(count, *estimates)


def _statistics(
    measured: Float[np.ndarray, "*resamples n"],
    reference: Float[np.ndarray, "*resamples n"],
    axis: int = -1,
) -> Float[np.ndarray, "5 *resamples"]:
    """Bias, limits, mean absolute difference and correlation."""
    differences = measured - reference
    bias = differences.mean(axis=axis)
    one = differences.shape[axis] < 2
    deviation = np.full_like(bias, np.nan) if one else differences.std(axis=axis, ddof=1)
    absolute = np.abs(differences).mean(axis=axis)
    lower, upper = bias - _LIMIT * deviation, bias + _LIMIT * deviation
    return np.stack([bias, lower, upper, absolute, _correlation(measured, reference, axis)])


def _correlation(
    one: Float[np.ndarray, "*resamples n"], other: Float[np.ndarray, "*resamples n"], axis: int
) -> Float[np.ndarray, "*resamples"]:
    """Pearson's; NaN where one of them does not vary."""
    one = one - one.mean(axis=axis, keepdims=True)
    other = other - other.mean(axis=axis, keepdims=True)
    norms = np.sqrt((one**2).sum(axis=axis) * (other**2).sum(axis=axis))
    varies = norms > 1e-12
    shared = (one * other).sum(axis=axis)
    return np.where(varies, shared / np.where(varies, norms, 1), np.nan)
