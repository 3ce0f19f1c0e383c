"""What people would run instead of this project's server: small servers, and how to start them.

`server` and `engines` run in environments that lack this project's packages and import nothing of
it. All speak `POST /v1/completions`, as vLLM's server and llama.cpp's do.
"""
