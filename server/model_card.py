"""The adapter's README.md: what PEFT and model hubs expect to read, and what the run promises.

Names and descriptions come from outside, so the front matter quotes every string as JSON (which
YAML contains) and the text escapes what Markdown would act on. Not covered: a licence; nobody has
stated one, and none is made up here.
"""

import json
import re
from pathlib import Path

from common import statement
from common.config import TaskName
from common.figures import NOTHING, bound, power, share
from common.job import Job, entity_types
from common.result import Result
from common.statement import PERSON_RECORDS, SitePromise
from common.words import public_name
from server.report.measured import how, interval, losses, reading

_KINDS: dict[TaskName, str] = {"seq-cls": "text", "token-cls": "token"}
_AUTO: dict[TaskName, str] = {
    "seq-cls": "AutoModelForSequenceClassification",
    "token-cls": "AutoModelForTokenClassification",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def model_card(result: Result, job: Job) -> str:
    """The text of the card.

    Raises:
        InvalidInput: the result is another job's.
    """
    promises = statement.site_promises(result, job)
    parts = [
        _front_matter(result, job),
        f"# {_escaped(result.name)}",
        _escaped(job.job.description),
        _about(result, job),
        _privacy(result, promises),
        _quality(result, job),
        _measured(result),
        _loading(result, job),
        _limits(result),
        f"Job sha256: `{result.job_sha256}`  \nAdapter file sha256: `{result.adapter_sha256}`",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(result: Result, job: Job) -> str:
    tags = ["lora", "peft", "federated-learning", "veiltune"]
    if result.private:
        tags.append("differential-privacy")
    fields: dict[str, object] = {
        "library_name": "peft",
        "pipeline_tag": f"{_KINDS[job.job.task]}-classification",
        "license": "unknown",
        "tags": tags,
        "metrics": ["f1", "precision", "recall"] if _of_words(job) else ["accuracy", "f1"],
    }
    if base := _hub_id(job):
        fields = {"base_model": base, **fields}
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join(("---", *lines, "---"))


def _hub_id(job: Job) -> str | None:
    """The base model's name on a hub; a folder of the operator's has none."""
    base = job.model.base
    return base if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) and not _is_folder(base) else None


def _is_folder(base: str) -> bool:
    return Path(base).is_absolute() or base.startswith(".")


def _about(result: Result, job: Job) -> str:
    base = _escaped(public_name(job.model.base))
    return (
        f"A LoRA adapter of rank {job.adapter.rank} (method {job.adapter.method}) for {base}, "
        f"trained by {_count(len(result.sites), 'site')} in {_count(result.last_round, 'round')} "
        f"without their records leaving them{_kept(result)}. {_purpose(job)} "
        f"The base model's content hash is `{job.model.sha256}`."
    )


def _of_words(job: Job) -> bool:
    return job.job.task == "token-cls"


def _kept(result: Result) -> str:
    """Which round's adapter it is, where that need not be the last."""
    if result.kept_round is None:
        return ""
    return f"; it is that of round {result.kept_round}, the best on the public hold-out"


def _purpose(job: Job) -> str:
    if not _of_words(job):
        return f"It sorts texts into {len(job.data.labels)} classes."
    kinds = ", ".join(map(_escaped, entity_types(job.data.labels)))
    return f"It tags the words of a text, to find entities: {kinds}."


def _privacy(result: Result, promises: tuple[SitePromise, ...]) -> str:
    why = statement.warning(result)
    if why is not None:
        return f"## Privacy: none\n\n**This run gives no privacy guarantee.** {why}"
    if result.epsilon is None or result.privacy.delta is None:
        return ""
    words = [
        statement.meaning(result.epsilon, result.privacy.delta, result.privacy.unit),
        statement.bet(result.epsilon, result.privacy.delta, result.privacy.unit),
        statement.person(promises, result.privacy.unit),
        statement.several_sites(result),
    ]
    terms = [f"- {term}: {value}" for term, value in statement.mechanism(result)]
    text = "\n\n".join(word for word in words if word)
    return "\n\n".join(("## Privacy", text, _sites(promises), "\n".join(terms)))


def _sites(promises: tuple[SitePromise, ...]) -> str:
    heads = ("site", "public population", "steps", "epsilon", "delta")
    lines = [_row(*heads, f"epsilon, person with {PERSON_RECORDS} records")]
    lines.append(_row("---", *["---:"] * 5))
    for site in promises:
        figures = (f"{site.population:,}", f"{site.steps:,}", bound(site.epsilon))
        person = bound(site.person_epsilon)
        lines.append(_row(_escaped(site.name), *figures, power(site.delta), person))
    return "\n".join(lines)


def _quality(result: Result, job: Job) -> str:
    source = _escaped(public_name(job.evaluation.data))
    lines = [
        "## Quality",
        "",
        f"{_figures(result)}, on the public hold-out {source} ({job.evaluation.split}). "
        f"{_escaped(statement.disjointness(job))}",
    ]
    if result.final.classes:
        first = "entity" if _of_words(job) else "class"
        lines += ["", _row(first, "precision", "recall", "F1", "support")]
        lines.append(_row("---", *["---:"] * 4))
    for row in result.final.classes:
        figures = (share(row.precision), share(row.recall), share(row.f1), str(row.support))
        lines.append(_row(_escaped(row.label), *figures))
    return "\n".join(lines)


def _measured(result: Result) -> str:
    """What the sites' own held-out records say, where they released counts of them."""
    stated = result.metrics
    if stated is None:
        return ""
    lines = ["## On the sites' own held-out records", "", _escaped(how(result, stated)), ""]
    lines.append(_row("of", "measure", "all sites", "worst site", "there"))
    lines.append(_row(*["---"] * 5))
    for one in stated.estimates:
        worst = _escaped(one.worst_site) or NOTHING
        cells = (one.measure, interval(one.together), worst, interval(one.worst))
        lines.append(_row(_escaped(one.row), *cells))
    lines += [
        _row(_escaped(f"loss {name}"), "records", f"{n:,} ± {stated.half_width:.0f}", "", "")
        for name, n in losses(stated)
    ]
    return "\n".join((*lines, "", _escaped(reading())))


def _figures(result: Result) -> str:
    final, found = result.final, result.final.entities
    if found is None:
        return f"Accuracy {share(final.accuracy)}, macro-F1 {share(final.macro_f1)}"
    return (
        f"Entity F1 {share(found.f1)} (precision {share(found.precision)}, recall "
        f"{share(found.recall)}; {statement.counting(found)})"
    )


def _loading(result: Result, job: Job) -> str:
    base = _hub_id(job)
    revision = f", revision={json.dumps(job.model.revision)}" if job.model.revision else ""
    named = json.dumps(base) if base else '"path/to/the/base"  # its content hash is above'
    return f"""## Loading

```python
from peft import PeftModel
from transformers import {_AUTO[job.job.task]}, AutoTokenizer

base = {named}
model = {_AUTO[job.job.task]}.from_pretrained(
    base, num_labels={len(job.data.labels)}{revision}
)
model = PeftModel.from_pretrained(model, "path/to/this/folder").eval()
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

Class `i` of the output is the job's label `i`{_labels(job)}. Texts were cut at \
{job.model.max_length} tokens."""


def _labels(job: Job) -> str:
    """The labels in their order; of words, where one counts a word's first token."""
    if not _of_words(job):
        return ""
    tags = ", ".join(f"`{_escaped(label)}`" for label in job.data.labels)
    return f" ({tags}), and a word's tag is that of its first token"


def _limits(result: Result) -> str:
    lines = [f"- {sentence}" for sentence in statement.not_covered(result)]
    lines.append(
        "- Licence: unknown. Nobody stated one; the base model's and the data's terms apply."
    )
    return "\n".join(("## What is not covered", "", *lines))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    """One line on which Markdown and HTML have nothing to act."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _MARKDOWN.sub(r"\\\1", line).translate(_HTML)
