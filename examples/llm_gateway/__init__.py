"""A gateway for language models, as a starting point for your own. See docs/llm-gateway.md.

    uvicorn examples.llm_gateway.upstream:app --port 9001
    uvicorn examples.llm_gateway.app:app

Then open http://127.0.0.1:8000 in a browser, with the key `key-of-ann`.
"""
