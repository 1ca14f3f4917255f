"""A report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from .proof_charts import COLOURS, front_chart, front_of, gate_chart, loss_chart
from .report import seconds, size

STYLE = Path(__file__).with_name("proof_page.css")
NO_SCORES = (
    "There are no scores: no CLIP model is in ComfyUI's <code>models/clip_vision</code>. Put the "
    "whole folder of one there, such as openai/clip-vit-large-patch14 from huggingface.co "
    "(config.json, model.safetensors, the tokenizer's and the preprocessor's files), and give the "
    "same command again: only the scores and pictures are made anew."
)
# A click on a picture shows it in its own size.
SCRIPT = """
const large = document.querySelector('dialog');
document.querySelectorAll('main img').forEach((small) => small.addEventListener('click', () => {
  large.querySelector('img').src = small.src;
  large.querySelector('p').textContent = small.alt;
  large.showModal();
}));
large.addEventListener('click', () => large.close());
"""


def page(found: Mapping[str, Any]) -> str:
    """The page of what `proof_pictures` made, with "training" of each concept."""
    concepts, trainings = found["concepts"], found["training"]
    names = " and ".join(f"{one['placeholder']}" for one in concepts)
    title = f"Perfusion: {names} on {found['model']['name']}"
    body = [_head(found, title)]
    for number, (concept, training) in enumerate(zip(concepts, trainings, strict=True)):
        body.append(_concept(concept, training, bool(found["scored_by"]), COLOURS[number % 2]))
    if "pairs" in found:
        body.append(_pairs(found["pairs"], concepts))
    body.append(_settings(found))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_safe(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{''.join(body)}</main>"
        '<dialog><img alt=""><p></p></dialog>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _head(found: Mapping[str, Any], title: str) -> str:
    model, versions = found["model"], found["versions"]
    trained = [one.get("train_seconds", 0.0) for one in found["training"]]
    most = max([one.get("peak_bytes", 0) for one in found["training"]] + [0])
    facts = {
        "model": f"{model['name']} ({model['family']})",
        "training": " and ".join(seconds(spent) for spent in trained),
        "peak memory": size(most) if most else "not known",
        "on": versions["device"],
        "ComfyUI": versions["ComfyUI"],
        "scored by": found["scored_by"] or "nothing",
    }
    chips = "".join(f"<li><b>{_safe(k)}</b>{_safe(v)}</li>" for k, v in facts.items())
    scores = "" if found["scored_by"] else f'<p class="note">{NO_SCORES}</p>'
    return (
        f"<header><h1>{_safe(title)}</h1><p>What <code>python -m fleet report</code> learned and "
        f"made, {date.today():%d %B %Y}. Every picture is what came out, none was chosen; click "
        f'one to see it in its own size.</p><ul class="facts">{chips}</ul>{scores}</header>'
    )


def _concept(
    concept: Mapping[str, Any], training: Mapping[str, Any], scored: bool, colour: str
) -> str:
    word = concept["placeholder"]
    best = concept["best"]
    told = (
        f"Bias {best['bias']:g} scores best (identity × text: {best['score']:.3f})."
        if best["score"] is not None
        else f"Shown at bias {best['bias']:g}, its own, where one is shown alone."
    )
    parts = [
        f'<section style="--own:{colour}"><h2><span class="word">{_safe(word)}</span> '
        f"learned from {len(training['files']) or len(concept['learned_from']) or 'hidden'} "
        f"pictures of a {_safe(concept['superclass'])}</h2>",
        _learned_from(concept, training),
        "<h3>At every bias</h3><p>A higher bias is closer to the prompt, a lower one to the "
        "pictures. In the first column the model paints "
        f"<em>{_safe(concept['superclass'])}</em>, the ordinary word, from the same noise. "
        f"{told}</p>",
        _sweep(concept, scored),
        '<div class="pair">',
    ]
    if scored:
        points = front_of(concept["rows"])
        parts.append(
            "<figure><h3>The front</h3><p>Means over all prompts and seeds. Up and to the right is "
            f"better.</p>{front_chart(points, best['bias'])}</figure>"
        )
    parts.append(
        f"<figure><h3>The gates</h3><p>How far each word of <em>{_safe(concept['gates']['prompt'])}"
        f"</em> turns into the concept, at bias {best['bias']:g}.</p>"
        f"{gate_chart(concept['gates'])}</figure></div></section>"
    )
    return "".join(parts)


def _learned_from(concept: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    pictures = "".join(
        f'<img src="{_safe(src)}" alt="training picture {n}">'
        for n, src in enumerate(concept["learned_from"], start=1)
    )
    hidden = "" if pictures else "<p>The training pictures are left out of this page.</p>"
    steps = training.get("steps", 0)
    told = [
        f"{steps} steps in {seconds(training.get('train_seconds', 0.0))}",
        f"pictures: {training['sizes']}",
        "captions of their own" if training["captions"] else "built-in captions",
    ]
    if training.get("loss") is not None:
        told.append(f"loss {training['loss']:.4f} at the end")
    notes = "".join(f'<p class="note">{_safe(note)}</p>' for note in training.get("notes", ()))
    chart = loss_chart(training.get("losses", ()), steps)
    return (
        f'<div class="learned"><div class="strip">{pictures}{hidden}</div>'
        f"<figure>{chart}<figcaption>{_safe('; '.join(told))}</figcaption></figure></div>{notes}"
    )


def _sweep(concept: Mapping[str, Any], scored: bool) -> str:
    rows = concept["rows"]
    biases = list(dict.fromkeys(row["bias"] for row in rows))
    head = "".join(
        f"<th{_best(bias, concept)}>{'the word alone' if bias is None else f'bias {bias:g}'}</th>"
        for bias in biases
    )
    lines = []
    for start in range(0, len(rows), len(biases)):
        some = rows[start : start + len(biases)]
        prompt = some[0]["prompt"].replace("{}", concept["placeholder"])
        cells = "".join(
            f"<td{_best(row['bias'], concept)}>{_picture(row, prompt, concept)}"
            + (f"<small>{row['identity']:.2f} · {row['text']:.2f}</small>" if scored else "")
            + "</td>"
            for row in some
        )
        seed = f"<small>seed {some[0]['seed']}</small>"
        lines.append(f"<tr><th>{_safe(prompt)}{seed}</th>{cells}</tr>")
    note = (
        '<p class="small">Below each picture: identity (like the training pictures) · text (like '
        "the prompt), by CLIP.</p>"
        if scored
        else ""
    )
    return (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{note}"
    )


def _best(bias: float | None, concept: Mapping[str, Any]) -> str:
    return ' class="best"' if bias is not None and bias == concept["best"]["bias"] else ""


def _picture(row: Mapping[str, Any], prompt: str, concept: Mapping[str, Any]) -> str:
    if row["bias"] is None:
        alt = row["prompt"].replace("{}", concept["superclass"])
    else:
        alt = f"{prompt}, bias {row['bias']:g}"
    return f'<img src="{_safe(row["picture"])}" alt="{_safe(alt)}, seed {row["seed"]}">'


def _pairs(pairs: Mapping[str, Any], concepts: Sequence[Mapping[str, Any]]) -> str:
    rows = pairs["rows"]
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    head = "".join(f"<th>seed {seed}</th>" for seed in seeds)
    lines = []
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        for learned in (True, False):
            key = "placeholder" if learned else "superclass"
            text = prompt.replace("{1}", concepts[0][key]).replace("{2}", concepts[1][key])
            some = [r for r in rows if r["prompt"] == prompt and r["learned"] is learned]
            cells = "".join(
                f'<td><img src="{_safe(row["picture"])}" alt="{_safe(text)}, seed {row["seed"]}">'
                + _pair_scores(row)
                + "</td>"
                for row in some
            )
            kind = "both concepts" if learned else "ordinary words"
            lines.append(f"<tr><th>{_safe(text)}<small>{kind}</small></th>{cells}</tr>")
    both = " and ".join(
        f'<span style="color:{colour}">{_safe(one["placeholder"])}</span>'
        for one, colour in zip(concepts, COLOURS, strict=False)
    )
    return (
        f"<section><h2>Both in one picture: {both}</h2><p>Learned apart, used together; below each "
        "the same prompt in ordinary words, from the same noise.</p>"
        f'<div class="wide"><table class="few"><thead><tr><th></th>{head}</tr></thead><tbody>'
        f"{''.join(lines)}</tbody></table></div><figure><h3>The gates</h3><p>Each word of <em>"
        f"{_safe(pairs['gates']['prompt'])}</em> should turn into its own concept alone.</p>"
        f"{gate_chart(pairs['gates'])}</figure></section>"
    )


def _pair_scores(row: Mapping[str, Any]) -> str:
    if "identity" not in row:
        return ""
    first, second = row["identity"]
    return f"<small>{first:.2f} and {second:.2f} · {row['text']:.2f}</small>"


def _settings(found: Mapping[str, Any]) -> str:
    looking = found["looking"]
    tables = [
        ("Versions", found["versions"]),
        ("Model", found["model"]),
        ("Training", found["training"][0]["settings"]),
        (
            "Sampling",
            {
                **{k: looking[k] for k in ("steps", "cfg", "sampler", "scheduler")},
                "side": looking["side"] or "the model's",
                "seconds": looking["seconds"],
            },
        ),
    ]
    shown = "".join(
        f"<div><h3>{name}</h3><dl>"
        + "".join(f"<dt>{_safe(k)}</dt><dd>{_safe(v)}</dd>" for k, v in table.items())
        + "</dl></div>"
        for name, table in tables
    )
    return f'<section><h2>How it was made</h2><div class="tables">{shown}</div></section>'


def _safe(text: object) -> str:
    return html.escape(str(text))
