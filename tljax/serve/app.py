"""The web application: a page, `POST /predict`, what the network is, and the description of all that."""

import asyncio
import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from tljax.data.reading import Unreadable
from tljax.inference.classifier import Classifier
from tljax.metrics.accuracy import chose_epoch
from tljax.report.console import fit_in_words
from tljax.report.html import make_templates
from tljax.serve.desk import Busy, InferenceQueue
from tljax.serve.guards import Rate, SafeHeaders, SameOrigin

HERE = Path(__file__).parent
TEMPLATES = make_templates("tljax.serve")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
      top: classes per picture unless the request says otherwise.
      most_bytes: of a request's body.
      per_minute: pictures per client.
      places: requests under way at once.
      pictures: in one form.
      patience: seconds within which a body must have come.
    """

    top: int = 5
    most_bytes: int = 20_000_000
    per_minute: int = 120
    places: int = 16
    pictures: int = 16
    patience: float = 30.0


class Ranked(BaseModel):
    """A class and its calibrated probability."""

    name: str = Field(alias="class")
    probability: float = Field(ge=0, le=1)


class Answer(BaseModel):
    """What the network says of a picture: `top`, or `error` where it cannot be read."""

    file: str | None = Field(default=None, description="the file's name, of a form")
    top: list[Ranked] | None = Field(default=None, description="the most probable class first")
    error: str | None = Field(default=None, description="why the picture cannot be read")
    of: str | None = Field(default=None, description="the class that `heat` explains")
    picture: str | None = Field(default=None, description="data URL of the square that the network saw, PNG")
    heat: str | None = Field(default=None, description="data URL of that square under its Grad-CAM, PNG")


class Answers(BaseModel):
    """One answer per picture, in their order."""

    answers: list[Answer]


class Accuracy(BaseModel):
    """How often the network was right on images that it was not trained on."""

    images: str = Field(description="`test`, or `validation` where there was no test")
    correct: int
    seen: int
    interval95: tuple[float, float] = Field(description="of the share, by Wilson")
    without: list[str] = Field(description="classes that none of these images is of: it says nothing of them")
    chose_epoch: bool = Field(description="whether these images chose the epoch, so that the share is high by that")


class Model(BaseModel):
    """The network and what may be asked of it."""

    name: str = Field(description="the run's folder")
    network: str
    classes: list[str]
    accuracy: Accuracy | None
    temperature: float = Field(description="that the logits are divided by; 1: not calibrated")
    calibration: str = Field(description="what the temperature was fitted on, or why it is 1")
    side: int = Field(description="pixels of the square that the network sees")
    top: int = Field(description="classes per picture, unless a request says otherwise")
    most_bytes: int = Field(description="of a request's body")
    most_pictures: int = Field(description="in one form")
    per_minute: int = Field(description="pictures of one client")


class Health(BaseModel):
    """Whether questions are answered."""

    status: str
    under_way: int = Field(description="requests that are being read or answered")


class Problem(BaseModel):
    """Why there is no answer, in one line."""

    detail: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "a form that cannot be read"},
    403: {"model": Problem, "description": "sent by another site's page"},
    408: {"model": Problem, "description": "the body did not come in time"},
    413: {"content": {"text/plain": {}}, "description": "larger than `most_bytes` of /model"},
    415: {"model": Problem, "description": "no picture that can be read, with the reason"},
    422: {"model": Problem, "description": "a parameter that does not fit, or a form without a file"},
    429: {"model": Problem, "description": "too many pictures in a minute; `Retry-After` has the seconds"},
    503: {"model": Problem, "description": "too many requests under way; `Retry-After` has the seconds"},
}
FILE = {"type": "string", "format": "binary"}
BODY = {"requestBody": {"required": True, "content": {
    "image/*": {"schema": FILE},
    "application/octet-stream": {"schema": FILE},
    "multipart/form-data": {"schema": {
        "type": "object", "required": ["image"], "properties": {"image": {"type": "array", "items": FILE}},
    }},
}}}  # fmt: skip


def make_app(desk: InferenceQueue, limits: Limits, *, hosts: tuple[str, ...] = ()) -> FastAPI:
    """Makes the application.

    Args:
      desk: the network.
      limits: what may be asked.
      hosts: names that requests may call this machine; empty for any.
    """
    classifier, rate = desk.classifier, Rate(limits.per_minute)
    app = FastAPI(
        title=f"tljax: {classifier.workdir.absolute().name}", version=version("tljax"), docs_url=None, redoc_url=None,
        description="Asks a fine-tuned network what it sees in a picture.", max_body_size=limits.most_bytes,
    )  # fmt: skip
    app.add_middleware(SameOrigin)
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(SafeHeaders)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = error.errors()[0]
        return JSONResponse({"detail": f"{wrong['loc'][-1]}: {wrong['msg']}"}, 422)

    @app.exception_handler(413)
    async def _(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("Content Too Large", 413)  # as where the length was announced

    @app.exception_handler(ClientDisconnect)
    async def _(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody hears it

    @app.post("/predict", responses=PROBLEMS, openapi_extra=BODY, response_model_exclude_none=True,
              response_description="the answers")  # fmt: skip
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, description="classes per picture")] = limits.top,
        heat: Annotated[bool, Query(description="also the square that the network saw, and its Grad-CAM")] = False,
        of: Annotated[str | None, Query(description="the class to explain by heat, not the most probable")] = None,
    ) -> Answers:
        """What a picture shows: the image file as the body, or several in a form.

        The file's type is told by decoding it. Of several pictures those that cannot be read have an `error` in their
        place; where that is all of them the answer is 415.
        """
        if of is not None and of not in classifier.classes:
            raise HTTPException(422, f"of: {of!r} is not one of the classes, which GET /model lists")
        client = request.client.host if request.client else ""
        rate.spend(client)
        try:
            with desk.place():
                pictures = await _pictures(request, limits)
                if len(pictures) > 1:
                    rate.spend(client, len(pictures) - 1)
                answers = [await answer(*one, top, heat or of is not None, of) for one in pictures]
        except Busy:
            raise HTTPException(503, "too many requests under way; try again", {"Retry-After": "1"}) from None
        if all(one.error for one in answers):
            several = f"none of {len(answers)} pictures can be read; the first: " if len(answers) > 1 else ""
            raise HTTPException(415, f"{several}{answers[0].error}")
        return Answers(answers=answers)

    async def answer(name: str | None, data: bytes, top: int, heat: bool, of: str | None) -> Answer:
        try:
            said = await desk.ask(data, top=top, heat=heat, of=of)
        except Unreadable as error:
            return Answer(file=name, error=error.reason)
        ranked = [Ranked(**{"class": best, "probability": share}) for best, share in said.best]
        return Answer(file=name, top=ranked, of=said.of or None, picture=said.picture or None, heat=said.heat or None)

    @app.get("/model", response_description="the network")
    async def model() -> Model:
        """Classes, accuracy, and what may be asked."""
        return about(classifier, limits)

    @app.get("/health", response_description="it answers")
    async def health() -> Health:
        """Answers while the service does."""
        return Health(status="ready", under_way=desk.taken)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        described = TEMPLATES.get_template("docs.html.jinja")
        return HTMLResponse(described.render(api=app.openapi(), base=str(request.base_url)))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(HERE / "static" / "index.html")

    app.mount("/static", StaticFiles(directory=HERE / "static"))
    return app


def about(classifier: Classifier, limits: Limits) -> Model:
    """What a run's result.json says of its network."""
    result = classifier.result
    images = next((split for split in ("test", "validation") if result.get(split)), "")
    found = result.get(images)
    without = result.get("without_images", {}).get(images, [])
    accuracy = None
    if found:
        counts = {name: found[name] for name in ("correct", "seen", "interval95")}
        chose = images == "validation" and chose_epoch(result)
        accuracy = Accuracy(images=images, without=without, **counts, chose_epoch=chose)
    return Model(
        name=classifier.workdir.absolute().name,
        network=result["config"]["model"]["name"],
        classes=list(classifier.classes),
        accuracy=accuracy,
        temperature=classifier.temperature,
        calibration=fit_in_words(classifier.fitted),
        side=classifier.preprocessing.crop,
        top=min(limits.top, len(classifier.classes)),
        most_bytes=limits.most_bytes,
        most_pictures=limits.pictures,
        per_minute=limits.per_minute,
    )


async def _pictures(request: Request, limits: Limits) -> list[tuple[str | None, bytes]]:
    """(name, bytes) of the pictures in a request; the name of one that is the body is None."""
    try:
        async with asyncio.timeout(limits.patience):
            if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
                return [(None, await request.body())]
            async with request.form(max_files=limits.pictures, max_fields=limits.pictures) as form:
                files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
                if not files:
                    raise HTTPException(422, "a form without a file; send files as `image`")
                return [(file.filename, await file.read()) for file in files]
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {limits.patience:g} s") from None
