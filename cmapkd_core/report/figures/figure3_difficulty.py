"""The paper's Figure 3: level weights against difficulty over samples, with the shuffled control."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from cmapkd_core.report.figures.style import Drawing, Look, SeriesStyle, label_ends, panel
from cmapkd_core.report.read.artifacts import Missing


@dataclass(frozen=True)
class LevelProfile:
    """One level's mean weight in bins of equal count from easy to hard, and its rank correlation with difficulty."""

    name: str
    mean: np.ndarray  # [bins]
    error: np.ndarray  # [bins], standard error of the mean
    rho: float | None  # Spearman's; None where the weight is the same for every sample


@dataclass(frozen=True)
class Profile:
    """All levels of one modality over the same samples."""

    levels: list[LevelProfile]
    centres: np.ndarray  # [bins], percentile of difficulty
    samples: int

    def flat(self) -> bool:
        """True where no level's weight depends on the sample."""
        return all(level.rho is None for level in self.levels)


def difficulty_profile(table: pa.Table, names: tuple[str, ...], seed: int | None = None) -> Profile:
    """Mean weights over quantiles of difficulty.

    Args:
        table: columns difficulty and w_<name>.
        names: levels; those without a column are left out.
        seed: shuffles the rows of weights across samples first. The control: whatever relation to
            difficulty is left then is chance (rho near 0, about +-1/sqrt(n)).

    Raises:
        Missing: no difficulty, no weights, or fewer than 8 samples.
    """
    known = [name for name in names if f"w_{name}" in table.column_names]
    if "difficulty" not in table.column_names or not known or table.num_rows < 8:
        raise Missing(f"Missing: weights and difficulty of at least 8 samples for {', '.join(names)}.")
    difficulty = table.column("difficulty").to_numpy().astype(float)
    rows = np.stack([table.column(f"w_{name}").to_numpy().astype(float) for name in known])
    if seed is not None:
        rows = rows[:, np.random.default_rng(seed).permutation(rows.shape[1])]
    bins = max(2, min(10, len(difficulty) // 10))
    parts = np.array_split(np.argsort(difficulty, kind="stable"), bins)
    levels = [_level(name, values, difficulty, parts) for name, values in zip(known, rows, strict=True)]
    return Profile(levels, 100 * (np.arange(bins) + 0.5) / bins, len(difficulty))


def _level(name: str, values: np.ndarray, difficulty: np.ndarray, parts: list[np.ndarray]) -> LevelProfile:
    """Means and errors over the parts (positions) of values [n], and their correlation with difficulty [n]."""
    mean = np.array([values[part].mean() for part in parts])
    error = np.array([values[part].std() / len(part) ** 0.5 for part in parts])
    constant = np.ptp(values) < 1e-6 or np.ptp(difficulty) == 0
    return LevelProfile(name, mean, error, None if constant else float(spearmanr(values, difficulty).statistic))


def draw_profile(title: str, profile: Profile, top: float) -> Drawing:
    """Mean level weights in quantile bins of difficulty, with a band of one standard error."""
    names = ", ".join(level.name for level in profile.levels)
    return Drawing(
        title, f"{title}: mean weight of {names} against difficulty", partial(_draw_profile, title, profile, top)
    )


def _draw_profile(title: str, profile: Profile, top: float, look: Look) -> Figure:
    xlabel = f"percentile of difficulty (easy to hard), n = {profile.samples}"
    figure, axes = panel(look, title, xlabel, "mean weight", wide=True)
    for place, level in enumerate(profile.levels):
        axes.plot(profile.centres, level.mean, **SeriesStyle(place, look).keywords(marker=True))
        low, high = level.mean - level.error, level.mean + level.error
        axes.fill_between(profile.centres, low, high, color=look.series[place], alpha=0.18, linewidth=0)
    axes.set_ylim(0, top)
    axes.set_xlim(0, 100)
    axes.axhline(1 / len(profile.levels), color=look.muted, linewidth=0.7, linestyle=(0, (2, 2)))
    names, ends = [level.name for level in profile.levels], [float(level.mean[-1]) for level in profile.levels]
    label_ends(axes, names, 100, ends, look.series)
    return figure
