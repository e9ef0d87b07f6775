"""What the first edition of docs/findings.md got wrong, with the numbers that say so."""

from __future__ import annotations

import math
from statistics import fmean, median

from rlsgd.study.scores import SCORES
from rlsgd.study.summary import best_rate, mean_interval, sweeps
from tools.findings_statistics import (
    available,
    difference,
    edge,
    embedded_weights,
    holm,
    moved,
    p_value,
    percent,
    points,
    smallest_problem_interval,
)
from tools.findings_tables import estimate, shown, study, values

DISPLACEMENT = "measures.update/displacement"
TENSORS, ROWS = "tensors_clipped_fraction", "head_rows_clipped_fraction"
VAL_PROBLEMS, SMOLLM2_PROBLEMS = 512, 64  # val_problems of the configs


def rl_and_sft() -> str:
    arms = study("rl_against_sft")
    sft = difference("rl_against_sft", "sft-sgd", "sft-adamw")
    displacements = [fmean(values(arms[arm], DISPLACEMENT)) for arm in ("sft-sgd", "sft-adamw")]
    return (
        '- **"SGD matches AdamW in SFT."** Against AdamW at the better of its two rates, paired, '
        f"SGD is {points(sft)} points: an interval that excludes 0 (three seeds, one comparison of "
        "several). It compared with AdamW at RL's rate. It goes "
        f"{displacements[1] / displacements[0]:.1f} times less far. "
        "`rlsgd study configs/studies/rl_against_sft.yaml`, seeds 1-3."
    )


def contrast() -> str:
    return (
        '- **"RL and SFT do not differ here."** A step of RL had 256 rows (32 prompts of 8 '
        "completions) and one of SFT 32; only the 60th step was looked at, and at rates 10 to 30 "
        "times the paper's 1e-6. With rows, rate and time unlike the paper's, this study could not "
        "show its contrast; whether it is there is **not settled**, see *Noise scale* below. "
        "`rlsgd study configs/studies/rl_against_sft.yaml`, seeds 1-3."
    )


def measure() -> str:
    found = moved(embedded_weights(), 5e-5)
    return (
        "- **The paper's table 4 beside `update/within_1e-5`.** The authors count "
        "`torch.isclose` of the bf16 difference. On the embedded weights moved by N(0, 5e-5) their "
        f"measure says {percent(found['bf16_difference_isclose_1e-5'], 2)}% unchanged, "
        f"`within_1e-5` {percent(found['within_1e-5'], 2)}% and `unchanged_bf16` "
        f"{percent(found['unchanged_bf16'], 2)}%. Theirs is now measured as "
        "`update/bf16_difference_isclose_1e-5`. `python tools/findings.py`, seed 0."
    )


def bf16_storage() -> str:
    lost = difference("precision", "sgd-bf16-nearest", "sgd-fp32")
    text = (
        '- **"With weights stored in bf16, SGD loses 2.5 points."** It did, by '
        f"{points(lost)} points, at the rate that was best in fp32: no rate was chosen for bf16. "
    )
    if "precision_rates" not in available():
        return text + (
            "Whether anything is lost at a rate of its own is **not settled** here. "
            "`rlsgd study configs/studies/precision.yaml`, seeds 1-3."
        )
    rates = study("precision_rates")
    best = best_rate(sweeps(list(rates.values()))["sgd-bf16-nearest"], SCORES["accuracy"])
    assert best is not None
    own, base = values(best, "score.final"), values(study("precision")["sgd-fp32"], "score.final")
    gain = mean_interval([a - b for a, b in zip(own, base, strict=True)])
    listed = ", ".join(
        f"{arm['learning_rate']:g}: {points(estimate(arm, 'score.final'), 1, sign=False)}%"
        for arm in rates.values()
    )
    return text + (
        f"At rates of its own ({listed}) the best, {best['learning_rate']:g}, is {points(gain)} "
        "points from fp32 at 3e-3, chosen on these same three seeds, which favours it, and leaves "
        f"{percent(estimate(best, 'update.unchanged_bf16').mean)}% unchanged. "
        "`rlsgd study configs/studies/precision_rates.yaml`, seeds 1-3."
    )


def grid() -> str:
    weights = embedded_weights()
    on_grid = weights.bfloat16().float()
    share = float((weights == on_grid).double().mean())
    off, on = (moved(base, 1e-5)["unchanged_bf16"] for base in (weights, on_grid))
    return (
        "- **Unchanged shares of the embedded model** are of a base that is not on the bf16 grid: "
        f"{percent(share, 4)}% of its weights are bf16 numbers, of a real release all are. A move "
        f"of N(0, 1e-5) leaves {percent(off)}% of it unchanged in the bf16 view, {percent(on)}% "
        "of the same base rounded first. Every percentage on this page is of the base off the grid "
        "unless it says otherwise, and lower than on it. `python tools/findings.py`, seed 0."
    )


def match() -> str:
    found = difference("momentum", "adamw", "sgd")
    assert found.half_width is not None
    return (
        '- **"Within a point over five seeds"** (SGD and AdamW in RL): AdamW minus SGD is '
        f"{points(found)} points, so the data allow AdamW "
        f"{percent(found.mean + found.half_width, 2)} points more and "
        f"{percent(found.half_width - found.mean, 2)} less; and all seeds share the same "
        f"{VAL_PROBLEMS} problems, which this interval over seeds leaves out. "
        "`rlsgd study configs/studies/momentum.yaml`, seeds 1-5."
    )


def rmsprop() -> str:
    names = ("rmsprop", "adamw", "sign-sgd", "sgd-momentum")
    raw = [p_value("momentum", name, "sgd") for name in names]
    corrected = holm(raw)
    listed = ", ".join(
        f"{title} {one:.3f}"
        for title, one in zip(("RMSProp", "AdamW", "SignSGD", "momentum"), corrected, strict=True)
    )
    return (
        f'- **RMSProp "excludes 0"**: p = {raw[0]:.3f} as one of four comparisons with SGD; after '
        f"Holm's correction {listed}. None of the four is shown to differ from SGD. "
        "`rlsgd study configs/studies/momentum.yaml`, seeds 1-5."
    )


def denser() -> str:
    arms = study("learning_rates")
    pairs = {"3e-05": "0.0003", "0.0001": "0.001", "0.0003": "0.003", "0.001": "0.01"}
    listed = ", ".join(
        f"{percent(estimate(arms[f'sgd-momentum-lr{with_}'], 'update.unchanged_bf16').mean)}"
        f"/{percent(estimate(arms[f'sgd-lr{without}'], 'update.unchanged_bf16').mean)}"
        for with_, without in pairs.items()
    )
    return (
        '- **Momentum makes "the update a little denser".** The rates were not comparable: with '
        "momentum 0.9 a rate is worth ten. At equal lr / (1 - momentum) the unchanged shares with "
        f"and without momentum are {listed}%. "
        "`rlsgd study configs/studies/learning_rates.yaml`, seeds 11-13."
    )


def distance() -> str:
    arms = study("displacement")
    adamw, sgd = arms["adamw-lr3e-06"], arms["sgd-lr0.001"]
    ways = [estimate(arm, DISPLACEMENT).mean for arm in (adamw, sgd)]
    scores = [points(estimate(arm, "score.final"), 1, sign=False) for arm in (adamw, sgd)]
    return (
        '- **"AdamW has to go three times as far for the same accuracy."** That set arms of other '
        f"rates beside one another. AdamW 3e-6 reaches {scores[0]}% at a displacement of "
        f"{ways[0]:.3f}, SGD 1e-3 {scores[1]}% at {ways[1]:.3f}: {ways[0] / ways[1]:.1f} times as "
        "far. `rlsgd study configs/studies/displacement.yaml`, seeds 1-3."
    )


def smollm2() -> str:
    found = difference("smollm2", "sgd", "adamw")
    least = smallest_problem_interval(found.mean, SMOLLM2_PROBLEMS)
    return (
        f'- **SmolLM2 "{points(found, 1)}"** (SGD minus AdamW, README) is an interval over three '
        f"seeds. All share the same {SMOLLM2_PROBLEMS} problems, one of which is "
        f"{percent(1 / SMOLLM2_PROBLEMS, 2)} points. Answers were not kept by problem, so the "
        "interval over problems is unknown; even if SGD lost no problem that AdamW solved, it "
        f"would be ± {percent(least)}, as wide as the difference. Which optimizer is better is "
        "**not settled**. `rlsgd study configs/studies/smollm2.yaml`, seeds 0-2."
    )


def effective_rates() -> str:
    raw = estimate(
        study("rl_against_sft_smollm2")["rl-adamw"], "measures.dynamics/effective_lr_p50"
    )
    corrected = raw.mean * math.sqrt(1 - 0.999**20)
    return (
        f"- **Median effective rates of {raw.mean:.1f}** on SmolLM2 are of the raw v, which starts "
        "at 0: after 20 steps Adam divides it by 1 - 0.999^20 before the root. Corrected so, "
        f"the median is {corrected:.2f}. SGD's 0.03 still lies below it. "
        "`rlsgd study configs/studies/rl_against_sft_smollm2.yaml`, seeds 0-2."
    )


def clipping() -> str:
    runs = [run for arm in study("learning_rates").values() for run in arm.finished]
    clipped = [run["measures"]["grad_clipped_fraction"] for run in runs]
    norms = [run["measures"]["grad_norm"] for run in runs]
    return (
        "- **Every learning-rate run was clipped.** At the last epoch "
        f"{sum(clipped):.0f} of {len(runs)} runs of RL were, with gradient norms of "
        f"{min(norms):.1f} to {max(norms):.1f} (median {median(norms):.1f}) against a limit of 1: "
        '"SGD" there is normalised SGD, and its rate the length of a step. What SGD does without '
        "clipping is **not settled** here. "
        "`rlsgd study configs/studies/learning_rates.yaml`, seeds 11-13."
    )


def edges() -> str:
    lines = []
    for name in ("learning_rates", "sft_sweep", "pretrain_sweep"):
        score = SCORES["loss" if name == "pretrain_sweep" else "accuracy"]
        for sweep, rates in sweeps(list(study(name).values())).items():
            best = best_rate(rates, score)
            if best is not None and len(rates) > 1 and (end := edge(rates, best)):
                lines.append(f"{sweep} of {name} ({best['learning_rate']:g}, the {end} tried)")
    return (
        "- **Best rates at an edge of their grid.** By this page's files those are now: "
        f"{'; '.join(lines) or 'none'}. A better rate may lie beyond. In pre-training the first "
        "edition had momentum 0.3 (highest tried), SGD 0.3 with clipping (lowest tried), and SGDLL "
        "100 with 5e-4 (both at an edge). `python tools/findings.py`."
    )


def corrections() -> str:
    """The list, a line each."""
    made = (
        pretraining,
        contrast,
        measure,
        bf16_storage,
        grid,
        rl_and_sft,
        match,
        rmsprop,
        denser,
        distance,
        smollm2,
        effective_rates,
        clipping,
        edges,
    )
    return "\n".join(make() for make in made)


def pretraining() -> str:
    return (
        '- **"SGDLL 100 (momentum 0.9)" in pre-training ran with momentum 0.0.** The arm named '
        "only the clips; the default optimizer's momentum, 0.0, was carried over to it without a "
        "word, in its sweep too. `python tools/check_studies.py` finds these two studies and no "
        "other. SGDLL was run again, in the sweep and in the study, with every argument stated: "
        f"its loss minus AdamW's is {points_of_loss('sgd-ll')} nats, where the first edition had "
        "+0.53. `rlsgd study configs/studies/pretrain.yaml`, seeds 1-3."
    )


def points_of_loss(arm: str) -> str:
    return shown(difference("pretrain", arm, "adamw"), 1, 2, sign=True)


def pretraining_notes() -> str:
    """The rates of the sweep, a line for each of its arms, and what the study clipped."""
    lines = []
    for name, rates in sweeps(list(study("pretrain_sweep").values())).items():
        listed = ", ".join(
            f"{arm['learning_rate']:g}: {estimate(arm, 'score.final').mean:.2f}" for arm in rates
        )
        lines.append(f"- {name}, rate: loss. {listed}")
    arms = study("pretrain")
    shares = {
        key: fmean(run["clipped_in_all_steps"][key] for run in arms[arm].finished)
        for arm, key in (
            ("sgd-ll", "tensors_clipped_fraction"),
            ("sgd-ll", "head_rows_clipped_fraction"),
            ("sgd-momentum-lr1", "grad_clipped_fraction"),
        )
    }
    lines.append(
        f"- Clipped in the study, mean of all steps: SGDLL's update {percent(shares[TENSORS])}% of "
        f"the tensors, its head {percent(shares[ROWS])}% of the rows; the gradient of SGD 1.0 with "
        f"momentum in {percent(shares['grad_clipped_fraction'])}% of the steps."
    )
    return "\n".join(lines)
