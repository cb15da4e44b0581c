"""Benchmark results in words and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgeopt.bench.results import BenchDocument, BenchResult, Ratio

SHOWN_OPERATORS = 10
HEAD = ("model", "device", "runtime", "unit", "precision", "median ms", "interval ms", "memory MB", "kind", "rests on")


def as_text(document: BenchDocument) -> list[str]:
    """Lines for a terminal: what was measured one by one, what was predicted as a table."""
    measured = [result for result in document.results if result.kind != "predicted"]
    predicted = [result for result in document.results if result.kind == "predicted"]
    lines: list[str] = []
    for result in measured:
        lines += _measured(result)
    lines += [ratio_in_words(ratio) for ratio in document.ratios]
    lines += _conditions(measured)
    if predicted:
        lines += table(HEAD, [_row(result) for result in predicted])
        lines += _about(predicted)
    lines += _profiles(document.results)
    lines += [f"no prediction: {text}" for text in document.refusals]
    return lines + [f"failed: {text}" for text in document.failures]


def failures_of(results: Sequence[BenchResult], budget_ms: float) -> tuple[str, ...]:
    """Per model and device: in words, if no result shows that it keeps to the budget. Unstable times show nothing."""
    best: dict[tuple[str, str], BenchResult] = {}
    for result in results:
        key = (result.model, result.device)
        if key not in best or (not result.stable, held(result)) < (not best[key].stable, held(best[key])):
            best[key] = result
    return tuple(
        f"{model} on {device}: {held(result):.3g} ms ({_holds(result)}), at most {budget_ms:g} ms was asked"
        for (model, device), result in best.items()
        if held(result) > budget_ms or not result.stable
    )


def held(result: BenchResult) -> float:
    """What a budget is compared with, in ms."""
    return result.latency_ms.high if result.kind == "predicted" else result.latency_ms.p50


def _holds(result: BenchResult) -> str:
    if result.kind == "predicted":
        return "upper end of the prediction"
    return "median" if result.stable else "unstable, which shows nothing; measure again on a machine at rest"


def ratio_in_words(ratio: Ratio) -> str:
    sure = not ratio.low <= 1 <= ratio.high
    word = "" if sure else ", no difference beyond the noise"
    word += "" if ratio.stable else "; of UNSTABLE times"
    return f"{ratio.model} takes {ratio.ratio:.3g} times as long as {ratio.to} ({ratio.low:.3g}–{ratio.high:.3g}{word})"


def _measured(result: BenchResult) -> list[str]:
    ms = result.latency_ms
    percentiles = [
        f"{name} {value:.3g}"
        for name, value in (("p90", ms.p90), ("p95", ms.p95), ("p99", ms.p99), ("mean", ms.mean))
        if value is not None
    ]
    said = [result.kind if result.verified else f"{result.kind}, unverified way"]
    conditions = result.conditions
    if conditions is not None:
        said.append(conditions.runtime)
        if conditions.delegate:
            parts = f" in {conditions.partitions} parts" if (conditions.partitions or 1) > 1 else ""
            share = f", {result.coverage:.0%} of operators{parts}" if conditions.partitions else ""
            said.append(f"{conditions.delegate}{share}")
        if conditions.threads:
            said.append(f"{conditions.threads} thread{'s' * (conditions.threads > 1)}")
        if result.batch > 1:
            said.append(f"batch {result.batch}")
        said.append(f"{conditions.runs} runs")
    lines = [
        f"{result.model}: {ms.p50:.3g} ms median ({ms.low:.3g}–{ms.high:.3g}), "
        f"{', '.join(percentiles)}; {', '.join(said)}"
    ]
    more = []
    if result.load_ms is not None:
        more.append(f"loads in {result.load_ms:.3g} ms")
    if result.first_ms is not None:
        more.append(f"first run {result.first_ms:.3g} ms")
    if result.memory_mb is not None:
        more.append(f"{result.memory_mb:.1f} MB")
    if result.throughput_per_s is not None:
        more.append(f"{result.throughput_per_s:.4g} per second")
    if result.energy is not None:
        more.append(f"{result.energy.mj_per_inference:.3g} mJ per inference ({result.energy.counter})")
    if more:
        lines.append(f"  {', '.join(more)}")
    if not result.stable:
        lines.append(f"  UNSTABLE, no result: {'; '.join(result.unstable_because)}")
    return lines


def _conditions(measured: Sequence[BenchResult]) -> list[str]:
    """Once: those measured together saw the same machine."""
    lines: list[str] = []
    for result in measured[:1]:
        found = result.conditions
        if found is None:
            continue
        load = "" if found.load is None else f", load {found.load:.1f}"
        mode = f", power mode {found.power_mode}" if found.power_mode else ""
        lines.append(f"on {found.machine}{load}{mode}")
        lines += [f"doubtful: {text}" for text in found.judged]
    return lines


def _row(result: BenchResult) -> tuple[str, ...]:
    prediction, ms = result.prediction, result.latency_ms
    assert prediction is not None
    fits = "" if prediction.fits_memory is not False else " does not fit"
    delegate = f" {prediction.delegate}" if prediction.delegate else ""
    threads = f" ×{prediction.threads}" if prediction.threads else ""
    error = prediction.rests_on.held_out_error_pct
    return (
        result.model,
        result.device,
        f"{result.runtime}{delegate}",
        f"{result.compute_unit}{threads}",
        str(result.precision),
        f"{ms.p50:.3g}",
        f"{ms.low:.3g}–{ms.high:.3g}" + (" too wide" if prediction.narrower else ""),
        f"{prediction.memory_mb:.1f}{fits}",
        f"predicted, {prediction.basis}",
        f"{prediction.rests_on.rows or prediction.rests_on.pooled_rows} rows"
        + ("" if error is None else f", ±{error:.0f}% on held-out {prediction.rests_on.held_out}")
        + f", covers {prediction.coverage:.0%}",
    )


def _about(predicted: Sequence[BenchResult]) -> list[str]:
    lines = ["predicted, not measured: median and its 90 % interval; measure on your own board with --on"]
    bases = {
        result.prediction.rests_on.held_out
        for result in predicted
        if result.prediction is not None and result.prediction.basis == "transferred"
    }
    if bases - {"threads"}:
        lines.append("transferred: nothing usable was measured on that device and runtime; its relatives stand for it")
    if "threads" in bases:
        lines.append("transferred, held-out threads: that device was measured with another number of threads")
    hints = [r.prediction.narrower for r in predicted if r.prediction is not None and r.prediction.narrower]
    if hints:
        lines.append("too wide: the ends differ by more than four times, which decides nothing. What would narrow it:")
        if len({result.device for result in predicted}) > 1:
            hints = ["edgeopt bench MODEL --device NAME says it"]
        lines += [f"  {text}" for text in dict.fromkeys(hints)]
    warnings = [text for result in predicted if result.prediction is not None for text in result.prediction.warnings]
    return lines + list(dict.fromkeys(warnings))


def _profiles(results: Iterable[BenchResult]) -> list[str]:
    lines: list[str] = []
    predicted = [result for result in results if result.kind == "predicted"]
    for result in results:
        if result.profile is None or (result.kind == "predicted" and len(predicted) > 1):
            continue
        bound = f", bound by {result.prediction.bound}" if result.prediction is not None else ""
        label = f"{result.profile.kind}, {result.profile.source}"
        lines.append(f"{result.model} on {result.device}, {label}{bound}:")
        body = [
            (f"{operator.ms:.3g} ms", f"{operator.share:.1%}", operator.op, operator.name)
            for operator in result.profile.operators[:SHOWN_OPERATORS]
        ]
        lines += [f"  {line}" for line in table((), body)]
    return lines


def table(head: tuple[str, ...], body: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest cell."""
    rows = [head, *body] if head else list(body)
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
