"""What one writes first: FastAPI, onnxruntime, a thread of FastAPI's pool for each request, no batching."""

import uvicorn
from classifier import PORT, REPLICAS, Classifier
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

app = FastAPI()
classifier = Classifier()


@app.post("/classify")
async def classify(request: Request) -> dict[str, list[list[dict[str, int | str | float]]]]:
    body = await request.body()
    return await run_in_threadpool(lambda: classifier.infer([classifier.decode(body)])[0])


if __name__ == "__main__":
    uvicorn.run("fastapi_server:app", port=PORT, workers=REPLICAS, access_log=False, log_level="warning")
