from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer

from curt.corpus.store import find_cases, read_cases
from curt.dialogue import Prompts
from tests.train.training_runs import make_corpus
from train.grpo import GRPOSettings, build_prompts


def test_prompts_hold_cross_fitted_candidates_where_they_are_drawn(
    tmp_path: Path, micro_model: Path
) -> None:
    corpus = make_corpus(tmp_path)
    ids = [case.id for case in read_cases(find_cases(corpus, "train"))]
    file = tmp_path / "candidates.jsonl"
    rows = [{"id": each, "text": f"参考：知{place}"} for place, each in enumerate(ids)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    config = GRPOSettings(corpus=corpus, candidates=file, steps=5, prompts=8)

    def prompts_of(reader: bool, share: float) -> list[dict[str, str]]:
        prompts = Prompts(tokenizer, 120, (lambda fact: "参考：读") if reader else None)
        changed = config.model_copy(update={"candidates_share": share})
        return list(build_prompts(changed, prompts))

    for row in prompts_of(reader=True, share=1.0):
        assert f"\n参考：知{ids.index(row['case_id'])}\n" in row["prompt"]
    some = ["参考：知" in row["prompt"] for row in prompts_of(reader=True, share=0.85)]
    assert 20 < sum(some) < 40
    assert not any("参考：" in row["prompt"] for row in prompts_of(reader=False, share=1.0))
