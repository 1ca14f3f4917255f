"""The pack's own routes, for its pages in the browser. All answers are JSON, but for the pictures.

    GET  /perfusion/concepts            the cards of all concept files
    GET  /perfusion/concept?file=       the card of one
    GET  /perfusion/preview?file=       its picture
    GET  /perfusion/family?folder=&name=  the family of a checkpoint, from its header
    POST /perfusion/similarities        what concepts answer to in a prompt
    POST /perfusion/live                sliders for a sampler that is running

What goes wrong is {"error": reason} with a status of 400 or above. What keeps ComfyUI's plots
without numbers for a while is no error: {"status": ..., "reason": ...}.

Nothing here writes a file. Names lead only into ComfyUI's model folders. Requests that a browser
sends for a page of another origin are refused, and so is a body that is no JSON, which such a page
could send unasked; ComfyUI's own check covers the loopback address alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from ..perfusion_core.comfy.beside_queue import Busy
from ..perfusion_core.comfy.concept_folder import concept_path
from ..perfusion_core.comfy.live import move_live
from ..perfusion_core.comfy.models import ComfyMismatch
from ..perfusion_core.concept.concept import Concept, ConceptError
from ..perfusion_core.families import FAMILIES
from ..perfusion_core.limits import MAX_BODY, MAX_CONCEPTS, MAX_WAITING
from ..perfusion_core.method.slider_schedule import checked_sliders
from ..perfusion_core.page.concept_index import (
    Listed,
    checkpoint_family,
    concept_card,
    concept_cards,
    concept_of,
    concept_preview,
)
from ..perfusion_core.page.origin import is_foreign
from ..perfusion_core.page.prompt_similarities import (
    EncoderGone,
    NoConcept,
    NoEncoder,
    Similarities,
    applied_concept,
    prompt_similarities,
    renamed,
)

logger = logging.getLogger(__name__)

# One at a time, and in a thread of their own: ComfyUI's other requests share the loop's.
_asking = ThreadPoolExecutor(1, "perfusion-prompts")
_waiting = asyncio.BoundedSemaphore(MAX_WAITING)

FOLDER = Path(__file__).resolve().parents[1]
copies = [str(FOLDER)]  # of the pack in this ComfyUI; their nodes tell each other nothing

Handler = Callable[[web.Request], Awaitable[web.Response]]


class _Refused(Exception):
    """A request that is not answered: a status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def add_routes(routes: web.RouteTableDef) -> None:
    """Add the pack's routes to ComfyUI's, unless they are there."""
    for route in routes:
        if getattr(route, "path", "") == "/perfusion/concepts":
            _note_copy(route)
            return
    routes.get("/perfusion/concepts")(_guarded(_concepts))
    routes.get("/perfusion/concept")(_guarded(_concept))
    routes.get("/perfusion/preview")(_guarded(_preview))
    routes.get("/perfusion/family")(_guarded(_family))
    routes.post("/perfusion/similarities")(_guarded(_similarities))
    routes.post("/perfusion/live")(_guarded(_live))


def _note_copy(route: Any) -> None:
    """The routes are another copy's: have it say so where it lacks what our nodes would tell it."""
    theirs = getattr(getattr(route, "handler", None), "__globals__", {}).get("copies")
    if theirs is None or theirs is copies:
        return
    theirs.append(str(FOLDER))
    logger.error(
        "Perfusion is installed twice, in %s: keep one of these folders and restart ComfyUI. The "
        "plots on the nodes will not work until then.",
        " and ".join(theirs),
    )


def _guarded(handler: Handler) -> Handler:
    """Refuses other pages' requests; makes what goes wrong an answer."""

    async def guarded(request: web.Request) -> web.Response:
        if is_foreign(request.headers):
            return _error(
                403,
                "Perfusion answers ComfyUI's own page only. Behind a proxy: have it pass on the "
                "Host header as the browser sent it.",
            )
        try:
            return await handler(request)
        except _Refused as refused:
            return _error(refused.status, str(refused))
        except ConceptError as error:
            return _error(404, str(error))
        except Exception as error:  # such as a device that is out of memory
            logger.exception("Perfusion: the request %s failed", request.path)
            return _error(500, f"{type(error).__name__}: {error}")

    return guarded


def _answer(data: dict[str, Any], status: int = 200) -> web.Response:
    # NaN and infinity are no JSON: better an error of ours than one in the page.
    return web.json_response(data, status=status, dumps=partial(json.dumps, allow_nan=False))


def _error(status: int, reason: str) -> web.Response:
    return _answer({"error": reason}, status)


async def _concepts(_: web.Request) -> web.Response:
    # Off the loop: the first time, every file is opened.
    cards, more = await asyncio.to_thread(concept_cards)
    return _answer({"concepts": [_card(one) for one in cards], "more": more})


async def _concept(request: web.Request) -> web.Response:
    listed = await asyncio.to_thread(concept_card, request.query.get("file", ""))
    return _answer(_card(listed))


def _card(listed: Listed) -> dict[str, Any]:
    if listed.card is None:
        return {"file": listed.file, "error": listed.error}
    card = asdict(listed.card)
    family = FAMILIES.get(listed.card.family)
    return {"file": listed.file, **card, "family_title": family.title if family else card["family"]}


async def _preview(request: web.Request) -> web.Response:
    picture, kind = await asyncio.to_thread(concept_preview, request.query.get("file", ""))
    # The type is ours, from a list of three; a browser shall not guess another.
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return web.Response(body=picture, content_type=kind, headers=headers)


async def _family(request: web.Request) -> web.Response:
    folder, name = request.query.get("folder", ""), request.query.get("name", "")
    family = await asyncio.to_thread(checkpoint_family, folder, name)
    if family is None:
        return _answer({"family": None, "title": None})
    return _answer({"family": family.id, "title": family.title})


async def _similarities(request: web.Request) -> web.Response:
    body = await _body(request)
    text, node, wanted = body.get("text"), body.get("node"), body.get("concepts")
    if not isinstance(text, str) or not isinstance(node, str) or not isinstance(wanted, list):
        raise _Refused(400, 'expected {"text": string, "node": string, "concepts": [...]}')
    if len(wanted) > MAX_CONCEPTS or not wanted:
        raise _Refused(400, f"{len(wanted)} concepts were asked for; 1 to {MAX_CONCEPTS} fit")
    asked = [_asked(one) for one in wanted]

    def answer() -> tuple[list[str], Similarities]:
        concepts = [concept() for concept in asked]
        return [c.placeholder for c in concepts], prompt_similarities(node, concepts, text)

    try:
        if _waiting.locked():
            raise Busy
        async with _waiting:
            names, found = await asyncio.get_running_loop().run_in_executor(_asking, answer)
    except Busy:
        return _not_now("busy", "ComfyUI is running a graph; its text encoder is not asked now.")
    except NoEncoder as error:
        if len(copies) > 1:
            folders = " and ".join(Path(copy).name for copy in copies)
            return _not_now(
                "twice",
                f"Perfusion is installed twice in ComfyUI's custom_nodes, as {folders}: delete one "
                "of the two folders and restart ComfyUI.",
            )
        if isinstance(error, EncoderGone):
            return _not_now(
                "gone",
                "ComfyUI keeps no text encoder after a run (--cache-none, or its memory was "
                "freed): start it without --cache-none, or run again.",
            )
        return _not_now("no_encoder", "Run the graph once: the tokens come from its CLIP.")
    except NoConcept:
        return _not_now("no_concept", "Run the graph once: a concept is made in it, in no file.")
    except (ComfyMismatch, ConceptError) as error:
        return _not_now("mismatch", str(error))
    asked_for = {"text": text, "names": names, "family_title": FAMILIES[found.family].title}
    return _answer({"status": "ok", **asked_for, **asdict(found)})


def _asked(one: Any) -> Callable[[], Concept]:
    """What gives a concept that a page names by its file, or by the node that puts it on a CLIP."""
    if isinstance(one, dict):
        file, node, placeholder = one.get("file"), one.get("node"), one.get("placeholder", "")
        if isinstance(file, str) and node is None and isinstance(placeholder, str):
            concept_path(file)
            return lambda: renamed(concept_of(file), placeholder)
        if isinstance(node, str) and file is None and isinstance(placeholder, str):
            return lambda: applied_concept(node, placeholder)
    raise _Refused(
        400,
        'every concept must be {"file": string, "placeholder": string}, or {"node": string, '
        '"placeholder": string} for one that a node applies from no file',
    )


def _not_now(status: str, reason: str) -> web.Response:
    return _answer({"status": status, "reason": reason})


async def _live(request: web.Request) -> web.Response:
    body = await _body(request)
    prompt_id, node_id = body.get("prompt_id"), body.get("node_id")
    if not isinstance(prompt_id, str) or not isinstance(node_id, str):
        raise _Refused(
            400, 'expected {"prompt_id": string, "node_id": string, "bias": number, ...}'
        )
    try:
        move_live(prompt_id, node_id, checked_sliders(body))
    except ValueError as error:  # a ComfyMismatch is one as well
        if isinstance(error, ComfyMismatch):
            return _not_now("over", str(error))
        raise _Refused(400, str(error)) from error
    return _answer({"status": "ok"})


async def _body(request: web.Request) -> dict[str, Any]:
    """The request's JSON object. A page of another origin cannot send that type unasked."""
    if request.content_type != "application/json":
        raise _Refused(415, f"expected application/json, not {request.content_type}")
    if (request.content_length or 0) > MAX_BODY:
        raise _Refused(413, f"the request has more than {MAX_BODY} bytes")
    data = bytearray()
    async for chunk in request.content.iter_chunked(MAX_BODY):
        data += chunk
        if len(data) > MAX_BODY:
            raise _Refused(413, f"the request has more than {MAX_BODY} bytes")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _Refused(400, f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise _Refused(400, "the request is not a JSON object")
    return body
