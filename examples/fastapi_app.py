"""A web app with a generator of its own: every user has sliders, and replies come as a stream of text.

PAD_BUNDLE=BUNDLE uvicorn examples.fastapi_app:app
curl -X PUT localhost:8000/users/anna -H 'content-type: application/json' -d '{"cheerful": 1, "simple": 0.5}'
curl -N localhost:8000/users/anna/replies -H 'content-type: application/json' -d '"How was your day?"'
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Body, FastAPI, HTTPException
from fastapi.responses import StreamingResponse

from pad_rt import Generator, PadError, Preference

users: dict[str, Preference] = {}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the bundle before the first request, and close it after the last."""
    with Generator.load(os.environ["PAD_BUNDLE"]) as app.state.generator:
        yield


app = FastAPI(lifespan=lifespan)


@app.put("/users/{name}")
def set_sliders(name: str, weights: dict[str, float]) -> dict[str, float]:
    """Weights of features; an unknown feature is refused when a reply is asked for."""
    users[name] = Preference(weights=weights)
    return weights


@app.post("/users/{name}/replies")
async def reply(name: str, question: str = Body()) -> StreamingResponse:
    """A reply as it is written. A client that goes away ends it."""
    events = app.state.generator.astream(question, preference=users.get(name))
    try:
        first = await anext(events)
    except PadError as error:  # a feature that the bundle has not, or a question that is too long
        raise HTTPException(400, str(error)) from None

    async def texts() -> AsyncIterator[str]:
        yield first.text
        async for event in events:
            yield event.text

    return StreamingResponse(texts(), media_type="text/plain")
