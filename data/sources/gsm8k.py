"""openai/gsm8k (MIT): a question, and a worked answer that ends with `#### 42`. Calculator marks `<<48/2=24>>` are
removed."""

from __future__ import annotations

import hashlib
import re

from data.sources.base import Loaded, Record, Skip, Source, text
from rewards.gsm8k import final_answer, parse_number
from rewards.problem import Problem

_MARKS = re.compile(r"<<[^<>\n]*>>")


def convert(record: Record) -> Loaded:
    question = text(record, "question").strip()
    worked = text(record, "answer")
    reasoning, marks, _ = worked.rpartition("####")
    answer = final_answer(worked)
    if not marks or parse_number(answer) is None:
        raise Skip("the answer does not end with '#### number'")
    return Loaded(
        Problem(
            id=f"gsm8k/{hashlib.sha256(question.encode()).hexdigest()[:12]}",
            statement=question,
            language="",
            source="gsm8k",
            answer=answer,
            solution=_MARKS.sub("", reasoning).strip(),
            license="MIT",
        )
    )


SOURCE = Source("gsm8k", convert, hub="openai/gsm8k", config="main")
