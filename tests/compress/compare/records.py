"""Hand-made measurements for the tests of the report."""

from __future__ import annotations

from compress.compare.choice import ArtifactIdentity, Closeness, Measured, Quality
from compress.compare.speed import Speed, Spread

CASES = 200


def measure(name: str, *, weights_mb: float, right: int | None, decode: float | None) -> Measured:
    """An artifact with this many right cases of `CASES`, and this decode speed on one thread."""
    quality = closeness = None
    if right is not None:
        scores = dict.fromkeys(
            ("charge_score_official", "article_score_official", "term_score_official", "parsed"),
            1.0,
        )
        quality = Quality(
            scores={**scores, "exact": right / CASES},
            exact_cases=[i < right for i in range(CASES)],
            verdicts=["盗窃|264|fixed 8"] * CASES,
            thinking_lengths=[20] * CASES,
        )
        closeness = Closeness(kl=0.001, argmax_agreement=0.99, positions=CASES)
    return Measured(
        identity=ArtifactIdentity(
            name=name,
            folder=f"models/{name}",
            manifest_sha256="0" * 64,
            format="hf",
            precision="int4",
            stage="export",
            made_from="models/parent",
            of_this_parent=True,
            recipe={"bits": 4},
            weights_mb=weights_mb,
            folder_mb=weights_mb + 1,
        ),
        quality=quality,
        closeness=closeness,
        speeds=[] if decode is None else [make_speed(1, decode), make_speed(2, decode / 2)],
    )


def make_speed(threads: int, decode: float) -> Speed:
    """A speed whose decode rate is given and whose other figures are one."""
    one = Spread(median=1.0, low=1.0, high=1.0)
    return Speed(
        threads=threads,
        rounds=1,
        load_s=1.0,
        peak_rss_mb=1.0,
        prompt_tokens=500,
        prefill_tokens_per_s=one,
        decode_tokens_per_s=Spread(median=decode, low=decode, high=decode),
        decode_to_first=one,
    )
